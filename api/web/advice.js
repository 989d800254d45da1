// What is one to do about a job that failed? The API says why; what helps stands in failures.json, by its stable
// code, as in the handbook.

import { get } from "/ui/service.js";

/** Read what helps; gives `adviceFor(job)`: one sentence, null where there is nothing to do. */
export async function readAdvice({ signal }) {
  const failures = await get("/ui/failures.json", { signal });
  return ({ state, error }) => {
    if (state !== "failed" || !error) return null;
    const known = failures[error.cause] ?? failures[error.code];
    return known?.do ?? (error.retryable ? "Retry it." : "Clone it with other settings.");
  };
}

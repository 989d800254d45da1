// What is one to do about a job that failed or waits? The API says why; this adds what helps, by its stable code.

const ADVICE = {
  model_not_found: "Check the model's path, and that it lies below the worker's allowed roots; then clone the job.",
  model_unreadable: "Check the model's files on the worker's machine; then clone the job.",
  model_unsupported: "Choose a model of a supported architecture: clone the job with another one.",
  hub_unauthorized: "Give the worker a valid HF_TOKEN, then retry.",
  hub_forbidden: "Accept the model's or dataset's terms on the hub with the account of the worker's HF_TOKEN, then retry.",
  hub_not_found: "Check id and revision; then clone the job.",
  hub_rate_limited: "Wait a while, then retry.",
  hub_unreachable: "Check the worker's connection to the hub, then retry.",
  hook_unsupported: "Clone the job with another hook point.",
  layer_out_of_range: "Clone the job with a layer that the model has.",
  context_too_long: "Clone the job with a smaller data.context_length.",
  data_unreadable: "Check the text's files on the worker's machine; then retry, or clone the job with others.",
  activations_mismatch: "Harvest the activations with the settings of this job, or clone it with theirs.",
  dataset_exhausted: "Clone the job with fewer training tokens, more epochs or more text.",
  core_mismatch: "Clone the job around a core of the same model, layer and hook point.",
  core_too_large: "Clone the job with a smaller core (selection.max_core) or a wider SAE.",
  core_empty: "Clone the job with a larger selection.attribution_fraction, or longer training.",
  degenerate_scores: "Look at the curves: nothing was learned. Clone the job with another lr or k.",
  non_finite: "Clone the job with a smaller lr.",
  device_unavailable: "Check the worker's device, then retry.",
  out_of_memory: "Clone the job with smaller batches or a narrower SAE, or retry on a larger device.",
  disk_full: "Make room on the worker's disk, then retry.",
  timed_out: "Clone the job with a larger time_limit_s, or fewer tokens.",
  spec_unsupported: "Start a worker of this version, then retry.",
  internal_error: "Retry; if it fails again, its output below belongs into a report.",
  attempts_exhausted: "Read its output below for what broke it off again and again, then retry.",
  crashed: "Read its output below, then retry.",
  lease_expired: "Check that its worker's machine is well, then retry.",
  store_unavailable: "Check the object store (`/readyz`), then retry.",
};

/** What to do about a failed job; null where there is nothing. */
export function adviceFor(job) {
  if (job.state !== "failed" || !job.error) return null;
  return ADVICE[job.error.cause] ?? ADVICE[job.error.code] ?? (job.error.retryable ? "Retry it." : "Clone it with other settings.");
}

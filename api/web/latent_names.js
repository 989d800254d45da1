// What are latents and their origins called, and where do their links lead?

import { h } from "/ui/dom.js";

/** A latent's id as a link to its page, told in short where it is of the job that is looked at. */
export function latentLink(id, jobId = null, attributes = {}) {
  const [job, cycle, row] = id.split(".");
  const text = job === jobId ? `${cycle}.${row}` : `…${job.slice(-8)}.${cycle}.${row}`;
  return h("a", { href: `#/latents/${id}`, title: id, class: "mono", ...attributes }, text);
}

/** A job's own page, or its lineage, under its name or the end of its id. */
export function jobLink(id, { name = null, isLineage = false } = {}) {
  return h("a", { href: `#/jobs/${id}${isLineage ? "/lineage" : ""}`, title: id }, name ?? `…${id.slice(-8)}`);
}

/** Where a latent was learned, or how a control came by it. */
export function originText(latent, jobId = null) {
  const kind = latent.origin_kind === "learned" ? "" : `${kindText(latent.origin_kind)}, `;
  const where = latent.origin_job_id === jobId ? "" : ` of …${latent.origin_job_id.slice(-8)}`;
  return `${kind}cycle ${latent.origin_cycle}${where}`;
}

export const kindText = (kind) => kind.replaceAll("_", " ");

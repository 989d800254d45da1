// How are figures, times and ids written? One way on every page; what is not known is a dash.

export const DASH = "–";
const UNITS = ["B", "kB", "MB", "GB", "TB"];

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** A figure with a few significant digits: `0.7412`, `12,300`, `1.2e-9`. */
export function figure(value, digits = 4) {
  if (!isNumber(value)) return DASH;
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en");
  if (value !== 0 && Math.abs(value) < 1e-4) return value.toExponential(digits - 2);
  return value.toLocaleString("en", { maximumSignificantDigits: digits });
}

/** A large count in short: `61.4k`, `276M`. */
export function count(value) {
  if (!isNumber(value)) return DASH;
  return value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 });
}

/** A share of one, as per cent. */
export function percent(value, digits = 1) {
  return isNumber(value) ? `${(value * 100).toFixed(digits)}%` : DASH;
}

export function bytes(value) {
  if (!isNumber(value)) return DASH;
  const step = Math.min(UNITS.length - 1, value < 1 ? 0 : Math.floor(Math.log10(value) / 3));
  return `${(value / 1000 ** step).toLocaleString("en", { maximumSignificantDigits: 3 })} ${UNITS[step]}`;
}

/** Seconds as people say them: `42 s`, `3 min 5 s`, `2 h 10 min`, `4 d 3 h`. */
export function duration(seconds) {
  if (!isNumber(seconds)) return DASH;
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

/** A moment in the reader's own time zone. */
export function moment(text) {
  if (!text) return DASH;
  return new Date(text).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
}

/** A moment in short: the time today, else the day. */
export function when(text) {
  if (!text) return DASH;
  const at = new Date(text);
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday
    ? at.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" })
    : at.toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "2-digit" });
}

/** What a job is called: its name, else the end of its id, which is what tells ids apart. */
export const jobTitle = (job) => job.name ?? `${job.kind} …${job.id.slice(-8)}`;

/** Any JSON value in one line. */
export function plain(value) {
  if (value === null || value === undefined) return DASH;
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

// Whose key is in use, and what may be changed with it? (The API decides; this says which buttons to show.)

import { get, keyInUse, withQuery } from "/ui/service.js";

const MOST_PAGES = 25;

/** `{role, owner, isAdmin, maySubmit, mayChange(owner)}`; while the service is open everybody may do everything. */
export async function findCaller({ signal }) {
  const key = keyInUse();
  return key ? withKey(await findKey(key, signal)) : withKey({ role: "admin", owner: null });
}

/** Find the key's own entry by how it begins: all that is stored of it beside a hash. */
async function findKey(key, signal) {
  let cursor = null;
  for (let n = 0; n < MOST_PAGES; n += 1) {
    const page = await get(withQuery("/keys", { limit: 200, cursor }), { signal });
    const found = page.items.find((one) => one.prefix && key.startsWith(one.prefix) && one.state === "valid");
    if (found) return found;
    if (!(cursor = page.next_cursor)) break;
  }
  return { role: "reader", owner: null };
}

function withKey({ role, owner }) {
  const isAdmin = role === "admin";
  return { role, owner, isAdmin, maySubmit: role !== "reader", mayChange: (whose) => isAdmin || (role === "submitter" && whose === owner) };
}

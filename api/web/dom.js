// How are elements made? By `h` and `svg` alone: whatever text they are given stays text, never markup.

const SVG = "http://www.w3.org/2000/svg";
const PROPERTIES = new Set(["value", "checked", "disabled", "selected", "open", "indeterminate", "readOnly"]);
const SAFE_LINK = /^(https?:|blob:|[#/?])/i;

/** Make an HTML element. Functions become listeners (`onclick`), `style` and `dataset` are objects, null and
 * false leave an attribute out; children are texts, numbers, nodes, or arrays of these. */
export function h(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Make an SVG element, in the same way. */
export function svg(tag, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

/** Put children in place of all that a node holds. */
export function fill(node, ...children) {
  node.replaceChildren(...nodesOf(children));
  return node;
}

/** Set a node's text if it is another one, so that nothing is drawn again that did not change. */
export function say(node, text) {
  const wanted = text === null || text === undefined ? "" : String(text);
  if (node.textContent !== wanted) node.textContent = wanted;
  return node;
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) setAttribute(element, name, value);
  element.append(...nodesOf(children));
  return element;
}

function setAttribute(element, name, value) {
  if (typeof value === "function") element.addEventListener(name.replace(/^on/, ""), value);
  else if (/^on/i.test(name) && value) throw new TypeError(`${name}: a listener must be a function`);
  else if (name === "style") for (const [key, set] of Object.entries(value)) element.style.setProperty(key, set);
  else if (name === "dataset") Object.assign(element.dataset, value);
  else if (PROPERTIES.has(name)) element[name] = value ?? "";
  else if (name === "href" && value && !SAFE_LINK.test(value)) throw new TypeError(`no link: ${value}`);
  else if (/^on/i.test(name)) return;
  else if (value === true) element.setAttribute(name, "");
  else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
}

function nodesOf(children) {
  const nodes = [];
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    nodes.push(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return nodes;
}

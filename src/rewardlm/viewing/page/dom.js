// Making elements. Texts only ever become text nodes: what a model, a data set or a file name says is never markup.

export function byId(id) {
  return document.getElementById(id);
}

// A text within the page's own words must not turn around what comes after it. What is quoted stands alone, and may.
export function inLine(text) {
  return text.replace(/[\u202a-\u202e\u2066-\u2069]/g, "\ufffd");
}
function written(node, text) {
  return node.localName === "blockquote" ? text : inLine(text);
}

// An element with attributes (true sets one without a value) and children: nodes, or texts.
export function el(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, key === "title" ? inLine(String(value)) : String(value));
  }
  for (const child of children) {
    if (child !== null && child !== undefined) made.append(typeof child === "string" ? written(made, child) : child);
  }
  return made;
}

export function setText(node, text) {
  const shown = written(node, text);
  if (node.textContent !== shown) node.textContent = shown;
}

// Gives parent one child per item, in order. A child that stays keeps its focus and what was opened in it.
export function keyed(parent, items, keyOf, create, update) {
  const known = parent.known || (parent.known = new Map());
  const wanted = new Set();
  let place = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    wanted.add(key);
    let child = known.get(key);
    if (!child) {
      child = create(item);
      known.set(key, child);
    }
    if (update) update(child, item);
    if (child !== place) parent.insertBefore(child, place);
    else place = place.nextSibling;
  }
  for (const [key, child] of known) {
    if (!wanted.has(key)) {
      child.remove();
      known.delete(key);
    }
  }
}

// A number for readers; a dash if there is none.
export function number(value, digits = 3) {
  if (typeof value !== "number") return "–";
  if (value !== 0 && (Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3)) return value.toExponential(1);
  return Math.abs(value) >= 100 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(digits)));
}

export function percent(value) {
  return typeof value === "number" ? (100 * value).toFixed(1) + " %" : "–";
}

export function duration(seconds) {
  if (seconds < 60) return Math.round(seconds) + " s";
  if (seconds < 3600) return Math.floor(seconds / 60) + " min " + Math.round(seconds % 60) + " s";
  return Math.floor(seconds / 3600) + " h " + Math.round((seconds % 3600) / 60) + " min";
}

// Makes elements. Text is always set as text and never parsed as markup.

/**
 * An element. In `properties`, `class` is its class, `on` has a listener for each event, and `role`, `for` and names
 * with a hyphen are attributes. Children are nodes or texts; null and false are left out.
 */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== false));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element with these attributes. */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** One of the icons of index.html. */
export function icon(name) {
  return svg("svg", { "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));
}

/** A button with an icon. `label` is its name for screen readers and its tooltip. */
export function iconButton(name, label, act) {
  return el("button", { type: "button", class: "icon small", "aria-label": label, title: label, on: { click: act } }, icon(name));
}

export const byId = (id) => document.getElementById(id);

/** Seconds as text: `0.21 s`, `4.1 s`. */
export function seconds(value) {
  return `${value < 1 ? value.toFixed(2) : value.toFixed(1)} s`;
}

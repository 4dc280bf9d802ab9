// Creates and changes elements from plain values. Text is never parsed as HTML.

export const byId = (id) => document.getElementById(id);

/** Return a new element. `properties` are set on it; names with a dash, `role` and `scope` become attributes. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "scope") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** Set a text only if it differs, so that a live region announces it once. */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** Set an element's width to a fraction of its parent's, limited to 0..1. */
export function setWidth(target, fraction) {
  target.style.width = `${(100 * Math.min(Math.max(fraction, 0), 1)).toFixed(2)}%`;
}

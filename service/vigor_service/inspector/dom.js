// Elements out of plain values: text stays text, whatever it contains.

export const byId = (id) => document.getElementById(id);

/** Return a new element; `properties` are set on it, or are attributes where they have a dash or are `role`. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "scope") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** Change a text only where it differs, so that a live region tells it once. */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** Make a width in percent of its parent out of a fraction. */
export function setWidth(target, fraction) {
  target.style.width = `${(100 * Math.min(Math.max(fraction, 0), 1)).toFixed(2)}%`;
}

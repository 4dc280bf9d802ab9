// Formats numbers and times for people. null is shown as a dash.

const DASH = "–";

export function significant(number) {
  return number === null ? DASH : number.toLocaleString("en", { maximumSignificantDigits: 4 });
}

export function signed(number) {
  return number === null ? DASH : number.toLocaleString("en", { maximumFractionDigits: 2, signDisplay: "exceptZero" });
}

export function percent(share, digits = 1) {
  if (share === null) return DASH;
  const text = (100 * share).toFixed(digits);
  return `${Number(text) === 0 ? (0).toFixed(digits) : text.replace("-", "−")} %`;
}

export function count(number, singular, plural = `${singular}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? singular : plural}`;
}

export function large(number) {
  return number.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 });
}

export function bytes(number) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(Math.floor(Math.log10(Math.max(number, 1)) / 3), units.length - 1);
  return `${significant(Number((number / 1000 ** power).toPrecision(3)))} ${units[power]}`;
}

/** Return the seconds of computation as text; 0 means that all scores were cached. */
export function computed(number) {
  return number === 0 ? "cached" : `${seconds(number)} of computation`;
}

function seconds(number) {
  return `${number.toLocaleString("en", { maximumSignificantDigits: 2 })} s`;
}

/** Return how long ago something was, in one unit. */
export function age(numSeconds) {
  const units = [[86400, "day"], [3600, "hour"], [60, "minute"], [1, "second"]];
  const [size, name] = units.find(([size]) => numSeconds >= size) ?? units[3];
  return `${count(Math.max(0, Math.floor(numSeconds / size)), name)} ago`;
}

export function shortDigest(digest) {
  const [, hex] = digest.split(":");
  return `${hex.slice(0, 8)}…${hex.slice(-4)}`;
}

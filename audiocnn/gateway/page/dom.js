// Elements and texts. Everything from outside (file names, classes, messages) becomes a text node.

export const byId = (id) => document.getElementById(id);

/** An element with attributes; strings among the children become text. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

export const spoken = (name) => name.replaceAll("_", " ");

/** Whole percents, with one decimal below 10 and above 99. */
export function percent(p) {
  if (p >= 0.9995) return "> 99.9 %";
  if (p < 0.0005) return "< 0.1 %";
  return `${(100 * p).toFixed(p < 0.0995 || p >= 0.99 ? 1 : 0)} %`;
}

/** Minutes and seconds: 1:05. */
export const clock = (seconds) =>
  `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

/** Have the browser save a file. */
export function save(name, content, type) {
  const blob = content instanceof Blob ? content : new Blob([content], { type });
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** The file's name without its last suffix. */
export const stem = (name) => name.replace(/\.[^.]*$/, "") || "sound";

/** A value kept over reloads: in this tab (sessionStorage) or in this browser (localStorage). */
export function kept(storage, name, value) {
  try {
    if (value === undefined) return window[storage].getItem(name);
    window[storage].setItem(name, value);
  } catch {
    // Storage is blocked: nothing is kept.
  }
  return value ?? null;
}

/** RMS level in dB of full scale on a `meter` element, from -60 to 0. */
export function showLevel(meter, dbfs) {
  const shown = Math.max(-60, Math.min(0, dbfs));
  meter.firstElementChild.style.width = `${100 * (1 + shown / 60)}%`;
  meter.setAttribute("aria-valuenow", Math.round(shown));
}

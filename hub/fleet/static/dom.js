// Elements from text: nothing here, and nothing that uses it, makes markup from what nodes say.

export function byId(id) {
  return document.getElementById(id);
}

// An element with attributes (a function for an event, true for a bare one, false and null for none) and children.
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function table(label, heads, rows) {
  return el('table', { 'aria-label': label },
    el('thead', {}, el('tr', {}, ...heads.map((head) => el('th', { scope: 'col' }, head)))),
    el('tbody', {}, ...rows));
}

export function number(value) {
  return value.toLocaleString('en');
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return 'unknown';
  const s = Math.max(0, Math.round(seconds));
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} d`;
}

export function ago(when) {
  const at = typeof when === 'number' ? when * 1000 : Date.parse(when);
  return Number.isNaN(at) ? '' : `${duration((Date.now() - at) / 1000)} ago`;
}

export function bytes(count) {
  if (count < 1024) return `${count} B`;
  return count < 1048576 ? `${(count / 1024).toFixed(1)} KB` : `${(count / 1048576).toFixed(1)} MB`;
}

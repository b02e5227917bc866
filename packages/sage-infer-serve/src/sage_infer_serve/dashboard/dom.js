// Create elements without HTML strings: all text of models and servers stays text.

export const find = (id) => document.getElementById(id);

// make("td", { class: "number" }, "text", child, …)
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

// A share of 0 to 1 for the style sheet, set by script, as the page's policy forbids style attributes.
export function withShare(element, share) {
  element.style.setProperty("--share", Math.min(1, Math.max(0, share)).toFixed(4));
  return element;
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

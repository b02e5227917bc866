// Elements without HTML in strings: whatever a model or a server says is text and nothing else.

export const find = (id) => document.getElementById(id);

// make("td", { class: "number" }, "text", child, …)
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

// A share of 0 to 1 for the style sheet; set from here, as the page's policy allows no style in attributes.
export function withShare(element, share) {
  element.style.setProperty("--share", Math.min(1, Math.max(0, share)).toFixed(4));
  return element;
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

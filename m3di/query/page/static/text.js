"use strict";

// Text of a store is shown as text only. What would steer a terminal, or hide or turn around what stands beside it,
// is shown as what it is: something that cannot be shown. (The same characters as in m3di's reports.)
const UNSHOWABLE =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2064\u2066-\u2069\ufeff\p{Cs}]/gu;
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);
const plain = (text) => String(text).replace(UNSHOWABLE, "\ufffd");
const words = (name) => plain(name).replaceAll("_", " ");
const capital = (name) => name.charAt(0).toUpperCase() + name.slice(1);
const signed = (number, digits) => number.toFixed(digits).replace("-", "\u2212");

/** An element with attributes and children, which are elements or text. */
function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same in a drawing. */
function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, plain(value));
  element.append(...children.map((child) => (child instanceof Node ? child : plain(child))));
  return element;
}

function say(id, text) {
  byId(id).textContent = plain(text);
}

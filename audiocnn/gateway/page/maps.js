// Feature maps: the main layers side by side, the blocks inside each drawn when they are unfolded.

import { byId, element, kept } from "./dom.js";
import { SIGNED, colourAt, decodeMap, drawTile, showScale } from "./plots.js";

const OPEN = "audiocnn-open-layers";

/** Draw `visualization` of an answer. */
export async function showMaps(maps) {
  const holder = byId("maps");
  const main = Object.keys(maps).filter((name) => !name.includes("."));
  const figures = main.map((name) => figure(name, maps[name]));
  await Promise.all(figures.map(({ draw }) => draw()));
  holder.querySelector(".main").replaceChildren(...figures.map(({ node }) => node));
  showScale(holder.querySelector(".scale"), SIGNED, [[0, "−1"], [0.5, "0"], [1, "+1"]]);
  const open = (kept("localStorage", OPEN) ?? "").split(",");
  holder.querySelector(".inner").replaceChildren(...main.map((name) => inside(name, maps, open)).filter(Boolean));
}

function figure(name, map) {
  const canvas = element("canvas", { role: "img", "aria-label": `Feature map of ${name}` });
  const caption = element("figcaption", {}, element("b", {}, name), ` ${map.shape.join(" × ")}`);
  const node = element("figure", { class: "map", "data-layer": name }, canvas, caption);
  const largest = Math.max(...map.range.map(Math.abs)) || 1;
  const draw = async () =>
    drawTile(canvas, await decodeMap(map), (value) => colourAt(SIGNED, (value / largest + 1) / 2));
  return { node, draw };
}

function inside(name, maps, open) {
  const parts = Object.keys(maps).filter((each) => each.startsWith(`${name}.`));
  if (!parts.length) return null;
  const figures = parts.map((part) => figure(part, maps[part]));
  const summary = element("summary", {}, `Inside ${name} `, element("small", {}, `${parts.length} maps`));
  const node = element("details", { "data-stage": name }, summary,
    element("div", { class: "maps" }, ...figures.map((each) => each.node)));
  let isDrawn = false;
  node.addEventListener("toggle", async () => {
    keepOpen();
    if (!node.open || isDrawn) return;
    isDrawn = true;
    await Promise.all(figures.map(({ draw }) => draw()));
  });
  node.open = open.includes(name);
  return node;
}

function keepOpen() {
  const open = [...byId("maps").querySelectorAll("details[open]")].map((each) => each.dataset.stage);
  kept("localStorage", OPEN, open.join(","));
}

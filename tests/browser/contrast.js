// Lists the texts of a page that stand out from what is behind them by less than 4.5 : 1.
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
function rgba(text) {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = text;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
}
function luminance([red, green, blue]) {
  const linear = (value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
}
function behind(node) {
  for (; node; node = node.parentElement) {
    const color = rgba(getComputedStyle(node).backgroundColor);
    if (color[3] > 250) return color;
  }
  return [255, 255, 255, 255];
}
const unseen = "script, svg, .absent, .skip, details:not([open]) > :not(summary)";
const poor = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
  if (!text || node.closest(unseen)) continue;
  const inks = [rgba(getComputedStyle(node).color), behind(node)].map(luminance).sort((a, b) => b - a);
  const ratio = (inks[0] + 0.05) / (inks[1] + 0.05);
  if (ratio < 4.5) poor.push(`${node.tagName}: ${text.slice(0, 30)} ${ratio.toFixed(2)}`);
}
return poor;

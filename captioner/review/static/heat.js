// Heat maps: where in a photo the model looked for a word, drawn over the photo.

import { get } from "./api.js";

const COLD = [8, 9, 14, 168];
const HOT = [255, 120, 20, 92];
const answers = new Map();

/** The heat maps of a photo; asked for once. */
export function heatOf(id) {
  if (!answers.has(id)) {
    const answer = get(`/api/photos/${id}/heat`);
    answers.set(id, answer);
    answer.catch(() => answers.delete(id));
  }
  return answers.get(id);
}

const bare = (word) => word.toLowerCase().replace(/[^\p{L}\p{N}]/gu, "");

/** Which of the model's words a caption's word is: the same place in the same text, else the same word. */
export function mapOf(heat, text, words, index) {
  if (text === heat.text && index < heat.maps.length) return heat.maps[index];
  const same = words.slice(0, index + 1).filter((word) => bare(word) === bare(words[index])).length;
  const places = heat.words.flatMap(([word], place) => (bare(word) === bare(words[index]) ? [place] : []));
  return places.length ? heat.maps[places[Math.min(same, places.length) - 1]] : null;
}

/** Draw a map over an image that is shown with object-fit: contain. */
export function drawHeat(canvas, image, map, [left, top, right, bottom]) {
  const box = shownBox(image);
  const density = devicePixelRatio;
  Object.assign(canvas.style, { left: `${box.left}px`, top: `${box.top}px`, width: `${box.width}px`, height: `${box.height}px` });
  canvas.width = Math.max(1, Math.round(box.width * density));
  canvas.height = Math.max(1, Math.round(box.height * density));
  const paint = canvas.getContext("2d");
  paint.imageSmoothingQuality = "high";
  paint.fillStyle = `rgba(${COLD.slice(0, 3)}, ${COLD[3] / 255})`;
  paint.fillRect(0, 0, canvas.width, canvas.height);
  const [x, y] = [left * canvas.width, top * canvas.height];
  const [width, height] = [(right - left) * canvas.width, (bottom - top) * canvas.height];
  paint.clearRect(x, y, width, height);
  paint.save();
  paint.beginPath();
  paint.rect(x, y, width, height);
  paint.clip();
  paint.drawImage(cells(map), x, y, width, height);
  paint.restore();
  canvas.hidden = false;
}

function cells(map) {
  const small = new OffscreenCanvas(map[0].length, map.length);
  const pixels = new ImageData(map[0].length, map.length);
  map.flat().forEach((heat, place) => {
    const share = heat / 255;
    pixels.data.set(COLD.map((cold, channel) => cold + share * (HOT[channel] - cold)), 4 * place);
  });
  small.getContext("2d").putImageData(pixels, 0, 0);
  return small;
}

function shownBox(image) {
  const style = getComputedStyle(image);
  const [padX, padY] = [parseFloat(style.paddingLeft), parseFloat(style.paddingTop)];
  const [width, height] = [image.clientWidth - 2 * padX, image.clientHeight - 2 * padY];
  const scale = Math.min(width / image.naturalWidth, height / image.naturalHeight);
  const shown = { width: image.naturalWidth * scale, height: image.naturalHeight * scale };
  return { ...shown, left: padX + (width - shown.width) / 2, top: padY + (height - shown.height) / 2 };
}

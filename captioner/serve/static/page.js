// The page at /: a photo in, its caption out, word by word, with a heat map for each word.

const element = (id) => document.getElementById(id);
const percent = (share) => `${Math.round(100 * share)} %`;

let token = "";
let waiting = null; // the photo that is captioned once the token is there
let asked = 0; // number of the newest photo: answers for earlier ones are dropped

function made(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

async function ask(path, photo) {
  const form = new FormData();
  form.append("images", photo, photo.name || "photo");
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { method: "POST", body: form, headers });
  return { status: response.status, answer: await response.json() };
}

function show(photo, result) {
  const picture = element("photo");
  URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(photo);
  picture.alt = result.caption;
  element("words").replaceChildren(
    ...result.words.map(({ word, confidence }) =>
      made(
        "button",
        { className: "word", type: "button" },
        made("span", { textContent: word }),
        made("meter", { value: confidence, min: 0, max: 1, ariaHidden: "true" }),
        made("small", { textContent: percent(confidence) }),
      ),
    ),
  );
  element("confidence").textContent = `Confidence ${percent(result.confidence)}`;
  element("hint").textContent = "";
  const others = result.alternatives.map(({ caption }) => made("li", { textContent: caption }));
  const tags = result.tags.map(({ tag, score }) => `${tag} ${percent(score)}`).join(", ");
  element("more").replaceChildren(
    ...(others.length ? [made("h2", { textContent: "Other captions" }), made("ul", {}, ...others)] : []),
    ...(tags ? [made("h2", { textContent: "Tags" }), made("p", { textContent: tags })] : []),
  );
  clearHeat();
  element("result").hidden = false;
}

function clearHeat() {
  const canvas = element("heat");
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
}

// Draw a grid of heat over the part of the photo that it covers: the colder, the darker.
function drawHeat({ rows, columns, window: [left, top, right, bottom] }, map) {
  const grid = made("canvas", { width: columns, height: rows });
  const cells = new ImageData(columns, rows);
  const hottest = Math.max(...map);
  map.forEach((heat, place) => cells.data.set([20, 16, 40, 200 * (1 - heat / hottest)], 4 * place));
  grid.getContext("2d").putImageData(cells, 0, 0);
  const canvas = element("heat");
  const picture = element("photo");
  canvas.width = picture.clientWidth;
  canvas.height = picture.clientHeight;
  const context = canvas.getContext("2d");
  const [x, y] = [left * canvas.width, top * canvas.height];
  const [width, height] = [(right - left) * canvas.width, (bottom - top) * canvas.height];
  context.imageSmoothingQuality = "high";
  context.drawImage(grid, x, y, width, height);
}

function offerHeat({ heat }) {
  const buttons = [...document.querySelectorAll(".word")];
  if (heat.maps.length !== buttons.length) return;
  let pinned = null;
  const light = (place) => (place === null ? clearHeat() : drawHeat(heat, heat.maps[place]));
  buttons.forEach((button, place) => {
    button.ariaPressed = "false";
    button.addEventListener("mouseenter", () => light(place));
    button.addEventListener("focus", () => light(place));
    button.addEventListener("mouseleave", () => light(pinned));
    button.addEventListener("blur", () => light(pinned));
    button.addEventListener("click", () => {
      pinned = pinned === place ? null : place;
      buttons.forEach((other, number) => (other.ariaPressed = String(number === pinned)));
      light(pinned ?? place);
    });
  });
  element("hint").textContent = "Point at a word to see where in the photo it comes from; press it to keep that.";
}

async function caption(photo) {
  const number = ++asked;
  element("problem").textContent = "";
  element("status").textContent = "Looking at the photo …";
  try {
    const { status, answer } = await ask("/v1/captions", photo);
    if (number !== asked) return;
    if (status === 401) {
      waiting = photo;
      element("unlock").hidden = false;
      element("token").focus();
      if (token) element("problem").textContent = "That is not the token.";
      return;
    }
    const result = answer.results?.[0];
    if (!result?.caption) {
      element("result").hidden = true;
      element("problem").textContent = result?.message ?? answer.message;
      return;
    }
    show(photo, result);
    const explained = await ask("/v1/explain", photo);
    if (number === asked && explained.status === 200) offerHeat(explained.answer.results[0]);
  } catch (error) {
    if (number === asked) element("problem").textContent = `The server cannot be reached: ${error.message}`;
  } finally {
    if (number === asked) element("status").textContent = "";
  }
}

element("file").addEventListener("change", ({ target }) => {
  if (target.files.length) caption(target.files[0]);
  target.value = ""; // the same photo may be chosen again
});

element("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  token = element("token").value;
  element("unlock").hidden = true;
  caption(waiting);
});

for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dropping", name === "dragover");
    const photo = name === "drop" ? event.dataTransfer.files[0] : null;
    if (photo) caption(photo);
  });
}

document.addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files.length) caption(clipboardData.files[0]);
});

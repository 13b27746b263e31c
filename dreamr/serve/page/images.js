// The images of the problem: chosen, dropped or pasted; shown, and removed one by one.

const byId = (id) => document.getElementById(id);
let images = []; // {url, name, preview}
let changed = () => {};

export const imageUrls = () => images.map(({ url }) => url);

// Show one image in place of all.
export async function showOnly(url, name) {
  setImages([await decoded(url, name)]);
}

// Take images from the user: `onChange` is called after each change, `onError` with a sentence for broken files.
export function listenForImages(onChange, onError) {
  changed = onChange;
  const take = async (files) => {
    if (files.length) onError(null);
    const results = await Promise.allSettled([...files].map(async (file) => decoded(await read(file), file.name)));
    const added = results.filter(({ status }) => status === "fulfilled").map(({ value }) => value);
    const broken = results.filter(({ status }) => status === "rejected").map(({ reason }) => reason.message);
    if (added.length) {
      setImages([...images, ...added]);
      changed();
    }
    if (broken.length) onError(broken.join(" "));
  };
  byId("image").addEventListener("change", async (event) => {
    await take(event.target.files);
    event.target.value = ""; // the same file can be chosen again
  });
  // Anywhere on the page: a file that is dropped elsewhere would replace the page.
  const over = (event, isOver) => { event.preventDefault(); byId("drop").classList.toggle("over", isOver); };
  for (const name of ["dragenter", "dragover"]) document.addEventListener(name, (event) => over(event, true));
  document.addEventListener("dragleave", (event) => over(event, false));
  document.addEventListener("drop", (event) => { over(event, false); take(event.dataTransfer.files); });
  document.addEventListener("paste", (event) => take(event.clipboardData.files));
}

function setImages(next) {
  images = next;
  byId("previews").hidden = !images.length;
  byId("drop").classList.toggle("more", images.length > 0);
  byId("drop-what").textContent = images.length ? "Drop more images" : "Drop images";
  byId("previews").replaceChildren(...images.map(item));
}

function item(image) {
  const { name, preview } = image;
  Object.assign(preview, { alt: name, className: preview.naturalWidth < 200 ? "small" : "" });
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: "×", title: "Remove", ariaLabel: `Remove ${name}` });
  button.addEventListener("click", () => remove(image));
  const caption = document.createElement("p"), whole = document.createElement("li");
  caption.append(Object.assign(document.createElement("span"), { textContent: name }), button);
  whole.append(preview, caption);
  return whole;
}

function remove(image) {
  const place = images.indexOf(image);
  setImages(images.filter((other) => other !== image));
  changed();
  const buttons = byId("previews").querySelectorAll("button");
  (buttons[Math.min(place, buttons.length - 1)] ?? byId("image")).focus();
}

// An image that the browser can show; raises with the file's name when it cannot.
async function decoded(url, name) {
  const preview = Object.assign(new Image(), { src: url });
  await preview.decode().catch(() => { throw new Error(`${name} cannot be shown: it is broken, or no image.`); });
  return { url, name, preview };
}

const read = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
  reader.readAsDataURL(file);
});

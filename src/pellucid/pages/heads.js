// Every head's picture, drawn when it comes into view, and one head's at full size.
(async () => {
  const found = JSON.parse(document.getElementById("patterns").textContent);
  const packed = Uint8Array.from(atob(found.data), (letter) => letter.charCodeAt(0));
  const opened = new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip")));
  const bytes = new Uint8Array(await opened.arrayBuffer());
  const rows = found.tokens.length, keys = rows, kept = found.kept;
  const size = kept ? rows * kept * 3 : rows * keys; // bytes of a head

  // the weights of one row, as pairs of key and weight from 0 to 1
  const row = (head, at) => {
    const pairs = [];
    if (!kept) for (let key = 0; key < keys; key++) {
      const weight = bytes[head * size + at * keys + key];
      if (weight) pairs.push([key, weight / 255]);
    } else for (let n = 0; n < kept; n++) {
      const start = head * size + (at * kept + n) * 3;
      if (bytes[start + 2]) pairs.push([bytes[start] + 256 * bytes[start + 1], bytes[start + 2] / 255]);
    }
    return pairs;
  };
  const shade = (weight) => [1 - weight * 0.87, 1 - weight * 0.6, 1 - weight * 0.33].map((part) => Math.round(255 * part));

  // a head on a canvas of so many cells a side, each the largest weight of those that fall into it
  const draw = (canvas, head, cells) => {
    const side = Math.min(cells, Math.max(rows, keys));
    const largest = new Float32Array(side * side);
    for (let at = 0; at < rows; at++) for (const [key, weight] of row(head, at)) {
      const cell = Math.floor((at * side) / rows) * side + Math.floor((key * side) / keys);
      largest[cell] = Math.max(largest[cell], weight);
    }
    canvas.width = canvas.height = side;
    const image = canvas.getContext("2d").createImageData(side, side);
    largest.forEach((weight, cell) => image.data.set([...shade(Math.sqrt(weight)), 255], 4 * cell));
    canvas.getContext("2d").putImageData(image, 0, 0);
  };

  const grid = document.getElementById("grid"), map = document.getElementById("map");
  const which = document.getElementById("which"), looked = document.getElementById("looked");
  let chosen = 0;
  const words = found.tokens.map((token, at) => {
    const word = document.createElement("span");
    word.textContent = token.replace(/\n/g, "⏎\n");
    word.onmouseenter = () => look(at);
    return word;
  });
  looked.append(...words);

  const look = (at) => {
    for (const word of words) { word.style.background = ""; word.className = ""; word.title = ""; }
    if (at < rows) for (const [key, weight] of row(chosen, at)) {
      words[key].style.background = `rgb(${shade(Math.sqrt(weight)).join(",")})`;
      words[key].style.color = weight > 0.4 ? "#fff" : "";
      words[key].title = weight.toFixed(3);
    }
    for (const word of words) if (!word.style.background) word.style.color = "";
    words[at].className = "from";
  };
  const choose = (head) => {
    grid.children[chosen].classList.remove("chosen");
    chosen = head;
    grid.children[head].classList.add("chosen");
    which.textContent = `${found.sites[Math.floor(head / found.heads)]}, head ${head % found.heads}`;
    draw(map, head, 1024);
    const side = Math.min(512, Math.max(240, 4 * map.width));
    map.style.width = map.style.height = `${side}px`;
    map.style.imageRendering = "pixelated";
    look(rows - 1);
  };
  const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    seen.unobserve(entry.target);
    draw(entry.target, Number(entry.target.dataset.head), 56);
  }));
  for (let head = 0; head < found.sites.length * found.heads; head++) {
    const canvas = document.createElement("canvas");
    canvas.dataset.head = head;
    canvas.width = canvas.height = 1;
    canvas.title = `${found.sites[Math.floor(head / found.heads)]}, head ${head % found.heads}`;
    canvas.onclick = () => choose(head);
    grid.append(canvas);
    seen.observe(canvas);
  }
  addEventListener("beforeprint", () => [...grid.children].forEach((canvas) => {
    seen.unobserve(canvas);
    draw(canvas, Number(canvas.dataset.head), 56);
  }));
  map.onmousemove = (event) => look(Math.max(0, Math.min(rows - 1, Math.floor((event.offsetY / map.clientHeight) * rows))));
  choose(0);
})();

// Every visible text on the page, with the contrast of its colour to what is behind it (WCAG 2.2).
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const paint = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) {
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
    }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((value) => value / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const own = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !own.checkVisibility({ visibilityProperty: true })) continue;
    if (own.closest(".hidden, :disabled, option, noscript, .skip")) continue;
    const behind = [];
    let fill = null;
    for (let each = own; each; each = each.parentElement) {
      const style = getComputedStyle(each);
      behind.unshift(style.backgroundColor);
      if (each.classList.contains("bar")) fill = getComputedStyle(each).getPropertyValue("--fill");
    }
    const ink = getComputedStyle(own).color;
    const grounds = [paint(behind)];
    if (fill) {
      const probe = document.createElement("i");
      probe.style.color = "var(--fill)";
      own.append(probe);
      grounds.push(paint([getComputedStyle(probe).color]));
      probe.remove();
    }
    for (const ground of grounds) {
      const [a, b] = [luminance(paint([ink])), luminance(ground)].sort((x, y) => y - x);
      found.push({ text: text.slice(0, 40), ratio: Math.round((100 * (a + 0.05)) / (b + 0.05)) / 100 });
    }
  }
  return found;
})()

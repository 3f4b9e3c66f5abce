// From an image to the model's input, as preprocess.json says. The arithmetic is that of Pillow 13,
// integer for integer, and that of preprocess.h of the C++ example: on the same decoded pixels the
// input is that of training.

// Decodes an image file, a video frame or a bitmap: upright, on white, 8 bits, without colour
// management. Returns ImageData (RGBA, opaque) with `turned`: whether the file has it on its side.
export async function decode(source) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(source, options);
  const canvas = document.createElement("canvas");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  // read often: kept in memory, because a GPU may round when it puts an image on white
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error(`the browser has no canvas of ${bitmap.width} x ${bitmap.height}`);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  const found = context.getImageData(0, 0, bitmap.width, bitmap.height);
  const stored = source instanceof Blob ? storedWidth(new DataView(await source.arrayBuffer())) : 0;
  found.turned = stored > 0 && stored !== bitmap.width;
  bitmap.close();
  return found;
}

// Width of a PNG or JPEG as its header has it, which no browser tells; 0 of other files.
function storedWidth(file) {
  if (file.byteLength > 24 && file.getUint32(0) === 0x89504e47) return file.getUint32(16);
  if (file.byteLength < 4 || file.getUint16(0) !== 0xffd8) return 0;
  for (let at = 2; at + 9 < file.byteLength; at += 2 + file.getUint16(at + 2)) {
    const marker = file.getUint16(at);
    const frame = marker >= 0xffc0 && marker <= 0xffcf && ![0xffc4, 0xffc8, 0xffcc].includes(marker);
    if (frame) return file.getUint16(at + 7);
  }
  return 0;
}

// The model's input, Uint8Array [size, size, channels], of ImageData; `how` is preprocess.json.
export function fit(image, how) {
  const { width, height, turned = false } = image, { size, resize, channels } = how;
  const from = colour(image, channels);
  const across = triangle(width, Math.min(width, height), resize, size);
  const down = triangle(height, Math.min(width, height), resize, size);
  const line = size * channels, stride = width * channels;
  const out = new Uint8Array(size * line);
  // Pillow 13 resizes columns before rows where the height shrinks by that much more; training
  // resizes before it turns an image upright.
  const [wide, high] = turned ? [height, width] : [width, height];
  const tall = resize < high && high - resize > 2 * (wide - resize);
  if (tall !== turned) {
    const middle = new Uint8Array(size * stride);
    for (let x = 0; x < stride; x++) resample(down, from, x, middle, x, stride);
    for (let y = 0; y < size; y++)
      for (let c = 0; c < channels; c++)
        resample(across, middle, y * stride + c, out, y * line + c, channels);
    return out;
  }
  const middle = new Uint8Array(height * line);
  for (let y = 0; y < height; y++)
    for (let c = 0; c < channels; c++)
      resample(across, from, y * stride + c, middle, y * line + c, channels);
  for (let x = 0; x < line; x++) resample(down, middle, x, out, x, line);
  return out;
}

function colour({ data, width, height }, channels) {
  const out = new Uint8Array(width * height * channels);
  for (let i = 0, o = 0; o < out.length; i += 4) {
    const r = data[i], g = data[i + 1], b = data[i + 2];
    if (channels === 1) out[o++] = (19595 * r + 38470 * g + 7471 * b + 32768) >> 16;
    else {
      out[o++] = r;
      out[o++] = g;
      out[o++] = b;
    }
  }
  return out;
}

// Triangle filter from the centre of `from` pixels, `length` of them, to `to`, of which the `size`
// in the middle are kept; as wide as the step from one output pixel to the next, which antialiases.
function triangle(from, length, to, size) {
  const scale = length / to, support = Math.max(scale, 1), before = Math.floor((to - size) / 2);
  return Array.from({ length: size }, (_, i) => {
    const centre = (from - length) / 2 + (before + i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(from, Math.trunc(centre + support + 0.5));
    const heights = [];
    let sum = 0;
    for (let x = first; x < end; x++) {
      heights.push(Math.max(0, 1 - Math.abs((x - centre + 0.5) * (1 / support))));
      sum += heights[heights.length - 1];
    }
    return { first, weights: heights.map((one) => Math.trunc(0.5 + (one / sum) * 4194304)) };
  });
}

// Resamples one line of bytes that lie `step` apart; weights are in 2^-22.
function resample(taps, from, start, to, place, step) {
  for (const { first, weights } of taps) {
    let sum = 1 << 21, at = start + first * step;
    for (let k = 0; k < weights.length; k++, at += step) sum += weights[k] * from[at];
    to[place] = Math.min(255, sum >> 22);
    place += step;
  }
}

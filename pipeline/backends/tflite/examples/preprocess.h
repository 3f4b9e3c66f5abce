// From decoded pixels to the model's input, as preprocess.json says. The arithmetic is that of
// Pillow 13, integer for integer: on the same decoded pixels the input is that of training.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

struct Image {
  int width, height, channels;  // 1: grey, 3: RGB, 4: RGB and straight (not premultiplied) alpha
  std::vector<uint8_t> pixels;  // rows from the top, channels interleaved
};

// Turns an image as its EXIF orientation says, 1 to 8.
inline Image Turn(const Image& in, int orientation) {
  const bool swap = orientation >= 5;
  const bool mirror = orientation == 2 || orientation == 3 || orientation >= 7;
  const bool flip = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  Image out{swap ? in.height : in.width, swap ? in.width : in.height, in.channels, {}};
  out.pixels.reserve(in.pixels.size());
  for (int y = 0; y < out.height; ++y) {
    for (int x = 0; x < out.width; ++x) {
      const int column = mirror ? in.width - 1 - (swap ? y : x) : (swap ? y : x);
      const int row = flip ? in.height - 1 - (swap ? x : y) : (swap ? x : y);
      const uint8_t* from = &in.pixels[(size_t(row) * in.width + column) * in.channels];
      out.pixels.insert(out.pixels.end(), from, from + in.channels);
    }
  }
  return out;
}

// Puts an image on white and makes it grey (1 channel) or RGB (3).
inline Image Colour(const Image& in, int channels) {
  Image out{in.width, in.height, channels, {}};
  out.pixels.reserve(size_t(in.width) * in.height * channels);
  for (size_t i = 0; i < in.pixels.size(); i += in.channels) {
    const uint32_t alpha = in.channels == 4 ? in.pixels[i + 3] : 255;
    uint32_t rgb[3];
    for (int c = 0; c < 3; ++c) {
      const uint32_t value = in.pixels[i + (in.channels == 1 ? 0 : c)];
      const uint32_t mixed = value * alpha + 255 * (255 - alpha) + 128;
      rgb[c] = (128 * mixed + mixed / 2) >> 15;  // mixed / 255, as Pillow divides
    }
    const uint32_t luma = (19595 * rgb[0] + 38470 * rgb[1] + 7471 * rgb[2] + 32768) >> 16;
    if (channels == 1) out.pixels.push_back(uint8_t(luma));
    else out.pixels.insert(out.pixels.end(), rgb, rgb + 3);
  }
  return out;
}

struct Taps {
  int first;
  std::vector<int32_t> weights;  // in 2^-22
};

// Triangle filter from the centre of `in` pixels, `length` of them, to `out`, of which the `size` in
// the middle are kept; as wide as the step from one output pixel to the next, which antialiases.
inline std::vector<Taps> Triangle(int in, int length, int out, int size) {
  const double start = (in - length) / 2.0, scale = double(length) / out, support = std::max(scale, 1.0), shrink = 1.0 / support;
  std::vector<Taps> all;
  for (int i = (out - size) / 2; i < (out - size) / 2 + size; ++i) {
    const double centre = start + (i + 0.5) * scale;
    const int first = std::max(0, int(centre - support + 0.5));
    const int end = std::min(in, int(centre + support + 0.5));
    std::vector<double> heights;
    double sum = 0;
    for (int x = first; x < end; ++x) {
      heights.push_back(std::max(0.0, 1.0 - std::abs((x - centre + 0.5) * shrink)));
      sum += heights.back();
    }
    all.push_back({first, {}});
    for (double height : heights)
      all.back().weights.push_back(int32_t(0.5 + height / sum * (1 << 22)));
  }
  return all;
}

// Resamples one line of bytes that lie `step` apart.
inline void Resample(const std::vector<Taps>& taps, const uint8_t* in, uint8_t* out, size_t step) {
  for (size_t i = 0; i < taps.size(); ++i) {
    int32_t sum = 1 << 21;
    for (size_t k = 0; k < taps[i].weights.size(); ++k)
      sum += taps[i].weights[k] * in[(taps[i].first + k) * step];
    out[i * step] = uint8_t(std::clamp(sum >> 22, 0, 255));
  }
}

// Resizes the shorter side to `resize` and cuts out the centre: [size, size, channels].
inline std::vector<uint8_t> Fit(const Image& in, int size, int resize) {
  const int side = std::min(in.width, in.height), channels = in.channels;
  const int line = size * channels, stride = in.width * channels;
  const auto across = Triangle(in.width, side, resize, size);
  const auto down = Triangle(in.height, side, resize, size);
  // Pillow 13 resizes columns before rows where the height shrinks by that much more; older ones
  // never do, which makes 1 level of difference.
  const bool tall = resize < in.height && in.height - resize > 2 * (in.width - resize);
  std::vector<uint8_t> middle(tall ? size_t(size) * stride : size_t(in.height) * line);
  std::vector<uint8_t> out(size_t(size) * line);
  for (int x = 0; tall && x < stride; ++x) Resample(down, &in.pixels[x], &middle[x], stride);
  const uint8_t* from = tall ? middle.data() : in.pixels.data();
  uint8_t* to = tall ? out.data() : middle.data();
  for (int y = 0; y < (tall ? size : in.height); ++y)
    for (int c = 0; c < channels; ++c)
      Resample(across, from + size_t(y) * stride + c, to + size_t(y) * line + c, channels);
  for (int x = 0; !tall && x < line; ++x) Resample(down, &middle[x], &out[x], line);
  return out;
}

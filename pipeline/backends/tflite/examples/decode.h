// From an image file to pixels, by stb_image.h (github.com/nothings/stb), turned as the EXIF of a
// JPEG says, 16 bits scaled to 8. PNG is exact. JPEG decoders differ: from libjpeg-turbo by 0.1 to
// 0.4 levels in the mean and 4 at most, more only at sharp edges of colours stored as 4:2:2.
#pragma once

#include <algorithm>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>

#include "preprocess.h"
#define STB_IMAGE_IMPLEMENTATION
#include "stb_image.h"

inline std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// EXIF orientation of a JPEG, 1 where it says none.
inline int Orientation(const std::string& file) {
  const size_t tiff = file.find(std::string("Exif\0\0", 6)) + 6;
  if (tiff < 6 || tiff + 8 > file.size()) return 1;
  const bool big = file[tiff] == 'M';
  auto number = [&](size_t at, int bytes) {
    uint32_t value = 0;
    for (int i = 0; i < bytes && tiff + at + i < file.size(); ++i)
      value |= uint32_t(uint8_t(file[tiff + at + i])) << 8 * (big ? bytes - 1 - i : i);
    return value;
  };
  const size_t directory = number(4, 4);
  for (size_t i = 0, entry = directory + 2; i < number(directory, 2); ++i, entry += 12)
    if (number(entry, 2) == 0x0112) return std::clamp(int(number(entry + 8, 2)), 1, 8);
  return 1;
}

inline Image Decode(const std::string& file) {
  const auto* bytes = reinterpret_cast<const stbi_uc*>(file.data());
  const int length = int(file.size());
  Image image{};
  if (!stbi_info_from_memory(bytes, length, &image.width, &image.height, &image.channels))
    throw std::runtime_error(std::string("not a readable image: ") + stbi_failure_reason());
  if (image.channels == 2) image.channels = 4;
  int w, h, c;
  const bool deep = image.channels == 1 && stbi_is_16_bit_from_memory(bytes, length);
  const std::unique_ptr<void, void (*)(void*)> loaded(
      deep ? static_cast<void*>(stbi_load_16_from_memory(bytes, length, &w, &h, &c, 1))
           : stbi_load_from_memory(bytes, length, &w, &h, &c, image.channels),
      stbi_image_free);
  if (!loaded) throw std::runtime_error("the image is damaged");
  image.pixels.resize(size_t(w) * h * image.channels);
  for (size_t i = 0; i < image.pixels.size(); ++i)
    image.pixels[i] = deep ? uint8_t((static_cast<uint16_t*>(loaded.get())[i] + 128) / 257)
                           : static_cast<stbi_uc*>(loaded.get())[i];
  return Turn(image, Orientation(file));
}

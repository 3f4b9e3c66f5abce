// Classifies an image with LiteRT: the three likeliest classes with their probabilities.
//
//   g++ -std=c++17 -O2 classifier.cc -I litert_cc_sdk -I stb -L . -lLiteRt -o classifier
//   LD_LIBRARY_PATH=. ./classifier model.tflite labels.txt preprocess.json photo.jpg
//
// For Android the compiler is the NDK's: aarch64-linux-android26-clang++ -static-libstdc++ and the
// rest as above. It is the C API of LiteRT 2.3, which is stable: headers from litert_cc_sdk.zip and
// libLiteRt.so for the device, https://developers.google.com/edge/litert/next/cpp_sdk.
#include <cstdio>
#include <cstring>
#include <numeric>
#include <regex>

#include "decode.h"
#include "litert/c/litert_compiled_model.h"
#include "litert/c/litert_environment.h"
#include "litert/c/litert_model.h"
#include "litert/c/litert_options.h"
#include "litert/c/litert_tensor_buffer.h"

void Check(LiteRtStatus status) {
  if (status == kLiteRtStatusOk) return;
  throw std::runtime_error("LiteRT: status " + std::to_string(status));
}

// Locks a buffer of exactly `size` bytes and copies them in or out.
void Copy(LiteRtTensorBuffer buffer, LiteRtTensorBufferLockMode mode, void* bytes, size_t size) {
  size_t expected;
  void* memory;
  Check(LiteRtGetTensorBufferPackedSize(buffer, &expected));
  if (size != expected) throw std::runtime_error("labels, preprocess.json and model differ");
  Check(LiteRtLockTensorBuffer(buffer, &memory, mode));
  if (mode == kLiteRtTensorBufferLockModeWrite) std::memcpy(memory, bytes, size);
  else std::memcpy(bytes, memory, size);
  Check(LiteRtUnlockTensorBuffer(buffer));
}

std::vector<float> Run(const char* path, std::vector<uint8_t> pixels, size_t classes) {
  LiteRtEnvironment environment;
  LiteRtModel model;
  LiteRtOptions options;
  LiteRtCompiledModel compiled;
  Check(LiteRtCreateEnvironment(0, nullptr, &environment));
  Check(LiteRtCreateModelFromFile(environment, path, &model));
  Check(LiteRtCreateOptions(&options));
  Check(LiteRtSetOptionsHardwareAccelerators(options, kLiteRtHwAcceleratorCpu));  // or Gpu, Npu
  Check(LiteRtCreateCompiledModel(environment, model, options, &compiled));
  LiteRtSignature signature;
  LiteRtTensor tensors[2];
  LiteRtTensorBufferRequirements needs[2];
  LiteRtTensorBuffer buffers[2];
  Check(LiteRtGetModelSignature(model, 0, &signature));
  Check(LiteRtGetSignatureInputTensorByIndex(signature, 0, &tensors[0]));
  Check(LiteRtGetSignatureOutputTensorByIndex(signature, 0, &tensors[1]));
  Check(LiteRtGetCompiledModelInputBufferRequirements(compiled, 0, 0, &needs[0]));
  Check(LiteRtGetCompiledModelOutputBufferRequirements(compiled, 0, 0, &needs[1]));
  for (int i = 0; i < 2; ++i) {
    LiteRtRankedTensorType type;
    Check(LiteRtGetRankedTensorType(tensors[i], &type));
    Check(LiteRtCreateManagedTensorBufferFromRequirements(
        environment, &type, needs[i], &buffers[i]));
  }
  std::vector<float> logits(classes);
  Copy(buffers[0], kLiteRtTensorBufferLockModeWrite, pixels.data(), pixels.size());
  Check(LiteRtRunCompiledModel(compiled, 0, 1, &buffers[0], 1, &buffers[1]));
  Copy(buffers[1], kLiteRtTensorBufferLockModeRead, logits.data(), classes * sizeof(float));
  return logits;  // an app keeps all of these, and destroys each by its LiteRtDestroy...
}

int main(int count, char** arguments) try {
  if (count != 5) throw std::runtime_error("give model.tflite labels.txt preprocess.json IMAGE");
  std::vector<std::string> labels;
  std::ifstream file(arguments[2]);
  for (std::string line; std::getline(file, line);) labels.push_back(line);
  const std::string json = Read(arguments[3]);
  auto number = [&](const std::string& key) {
    std::smatch found;
    if (!std::regex_search(json, found, std::regex("\"" + key + "\"\\s*:\\s*(\\d+)")))
      throw std::runtime_error(key + " is not in preprocess.json");
    return std::stoi(found[1]);
  };
  const Image image = Colour(Decode(Read(arguments[4])), number("channels"));
  const auto pixels = Fit(image, number("size"), number("resize"));
  std::vector<float> scores = Run(arguments[1], pixels, labels.size());
  const float largest = *std::max_element(scores.begin(), scores.end());
  for (float& score : scores) score = std::exp(score - largest);  // softmax
  const float sum = std::accumulate(scores.begin(), scores.end(), 0.0f);
  std::vector<size_t> order(labels.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return scores[a] > scores[b]; });
  for (size_t i = 0; i < std::min<size_t>(3, order.size()); ++i)
    std::printf("%s %.6f\n", labels[order[i]].c_str(), scores[order[i]] / sum);
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}

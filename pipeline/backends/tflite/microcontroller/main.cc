// Classifies the golden image of model.cc with TFLite Micro, and compares the logits with those that
// it gave in the lab. Exit code 1 if it fails, or they differ by more than a fiftieth of their range.
//
// On a board the image comes from a camera, and main() from your system.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "model.h"
#include "operators.h"
#include "preprocess.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace {

alignas(16) uint8_t arena[kArenaBytes];

int Fail(const char* what) {
  std::printf("FAILED: %s\n", what);
  return 1;
}

}  // namespace

int main() {
  tflite::InitializeTarget();
  Operators operators;
  if (AddOperators(operators) != kTfLiteOk) return Fail("the operators cannot be added");
  const tflite::Model* model = tflite::GetModel(kModel);
  if (model->version() != TFLITE_SCHEMA_VERSION) return Fail("another version of the schema");
  tflite::MicroInterpreter interpreter(model, operators, arena, kArenaBytes);
  if (interpreter.AllocateTensors() != kTfLiteOk) return Fail("the tensor arena is too small");
  TfLiteTensor* input = interpreter.input(0);

  // Fit() takes an image of any size; for a camera's give it kResize as the last argument. The
  // golden image has its final size, so that nothing changes.
  const Image image{kSize, kSize, kChannels, {kGoldenImage, kGoldenImage + sizeof(kGoldenImage)}};
  const std::vector<uint8_t> pixels = Fit(Colour(image, kChannels), kSize, kSize);
  if (input->type != kTfLiteUInt8 || input->bytes != pixels.size())
    return Fail("the model takes another input");
  std::memcpy(input->data.uint8, pixels.data(), pixels.size());  // before each Invoke(), anew

  if (interpreter.Invoke() != kTfLiteOk) return Fail("the model cannot be run");
  const float* logits = interpreter.output(0)->data.f;
  const auto best = std::max_element(logits, logits + kClasses) - logits;
  const auto golden = std::max_element(kGoldenLogits, kGoldenLogits + kClasses) - kGoldenLogits;
  const auto ends = std::minmax_element(kGoldenLogits, kGoldenLogits + kClasses);
  const float range = *ends.second - *ends.first;
  float error = 0;
  for (int i = 0; i < kClasses; ++i)
    error = std::max(error, std::abs(logits[i] - kGoldenLogits[i]));
  std::printf("class: %s\n", kLabels[best]);
  std::printf("in the lab: %s; largest difference of a logit: %g of %g\n", kLabels[golden],
              double(error), double(range));
  std::printf("tensor arena: %u of %u bytes used\n", unsigned(interpreter.arena_used_bytes()),
              unsigned(kArenaBytes));
  if (best != golden || !(error <= range / 50)) return Fail("these are not the answers of the lab");
  std::printf("PASSED\n");
  return 0;
}

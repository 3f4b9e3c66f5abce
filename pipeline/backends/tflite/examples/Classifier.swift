// Classifies an image with LiteRT on iOS: classes with probabilities, likeliest first.
//
// In the Podfile: pod 'TensorFlowLiteSwift', '~> 2.17.0', which is LiteRT's interpreter.
// `folder` holds model.tflite, labels.txt and preprocess.json, as Bundle.main.bundleURL does.
//
// The arithmetic is Pillow's, integer for integer. What Core Graphics may change: JPEG by a few
// levels, transparent and 16-bit pixels by 1, and CMYK, which it converts.
import CoreGraphics
import Foundation
import ImageIO
import TensorFlowLite

final class Classifier {
  private struct Input: Decodable {
    let size, resize, channels: Int
  }

  private let labels: [String]
  private let input: Input
  private let interpreter: Interpreter

  init(folder: URL, threads: Int = 1) throws {
    let text = try String(contentsOf: folder.appendingPathComponent("labels.txt"), encoding: .utf8)
    labels = Array(text.components(separatedBy: "\n").dropLast())
    let json = try Data(contentsOf: folder.appendingPathComponent("preprocess.json"))
    input = try JSONDecoder().decode(Input.self, from: json)
    var options = Interpreter.Options()
    options.threadCount = threads
    options.isXNNPackEnabled = true
    let model = folder.appendingPathComponent("model.tflite").path
    interpreter = try Interpreter(modelPath: model, options: options)
    try interpreter.allocateTensors()
  }

  /// The `top` likeliest classes, with probabilities, of an image file's bytes.
  func classify(_ file: Data, top: Int = 3) throws -> [(label: String, probability: Float)] {
    try interpreter.copy(Data(pixels(file)), toInputAt: 0)
    try interpreter.invoke()
    let output = try interpreter.output(at: 0).data
    let logits = output.withUnsafeBytes { Array($0.bindMemory(to: Float.self)) }
    let largest = logits.max() ?? 0
    let powers = logits.map { exp($0 - largest) }
    let sum = powers.reduce(0, +)
    let likeliest = zip(labels, powers).sorted { $0.1 > $1.1 }.prefix(top)
    return likeliest.map { (label: $0.0, probability: $0.1 / sum) }
  }

  /// The model's input: decoded on white, turned as EXIF says, grey or RGB, resized and cut.
  private func pixels(_ file: Data) throws -> [UInt8] {
    guard let source = CGImageSourceCreateWithData(file as CFData, nil),
      let image = CGImageSourceCreateImageAtIndex(source, 0, nil)
    else { throw CocoaError(.fileReadCorruptFile) }
    let properties = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [CFString: Any]
    let turn = properties?[kCGImagePropertyOrientation] as? Int ?? 1
    let (w, h) = (image.width, image.height)
    // In the image's own colour space, so that no value is converted; grey stays one channel.
    let own = image.colorSpace.flatMap { $0.supportsOutput ? $0 : nil }
    let grey = own?.model == .monochrome
    let space = grey || own?.model == .rgb ? own! : CGColorSpace(name: CGColorSpace.sRGB)!
    let step = grey ? 1 : 4
    var drawn = [UInt8](repeating: 255, count: w * h * step)
    let alpha: CGImageAlphaInfo = grey ? .none : .noneSkipLast
    try drawn.withUnsafeMutableBytes {
      guard let context = CGContext(
        data: $0.baseAddress, width: w, height: h, bitsPerComponent: 8, bytesPerRow: w * step,
        space: space, bitmapInfo: alpha.rawValue)
      else { throw CocoaError(.fileReadCorruptFile) }
      context.draw(image, in: CGRect(x: 0, y: 0, width: w, height: h))
    }
    let (width, height) = turn >= 5 ? (h, w) : (w, h)
    let (mirror, flip) = ([2, 3, 7, 8].contains(turn), [3, 4, 6, 7].contains(turn))
    var colours: [UInt8] = []
    colours.reserveCapacity(w * h * input.channels)
    for y in 0..<height {
      for x in 0..<width {
        let (column, row) = turn >= 5 ? (y, x) : (x, y)
        let at = ((flip ? h - 1 - row : row) * w + (mirror ? w - 1 - column : column)) * step
        let (r, g, b) = (drawn[at], drawn[at + (grey ? 0 : 1)], drawn[at + (grey ? 0 : 2)])
        let luma = (19595 * Int(r) + 38470 * Int(g) + 7471 * Int(b) + 32768) >> 16
        colours.append(input.channels == 1 ? UInt8(luma) : r)
        if input.channels == 3 { colours.append(g); colours.append(b) }
      }
    }
    let side = min(width, height)
    let (line, stride) = (input.size * input.channels, width * input.channels)
    let across = triangle(width, side)
    let down = triangle(height, side)
    // Pillow 13 resizes columns before rows where the height shrinks by that much more; older ones
    // never do, which makes 1 level of difference.
    let resize = input.resize
    let tall = resize < height && height - resize > 2 * (width - resize)
    var middle = [UInt8](repeating: 0, count: tall ? input.size * stride : height * line)
    var out = [UInt8](repeating: 0, count: input.size * line)
    if tall {
      for x in 0..<stride { resample(down, colours, x, &middle, x, stride) }
    }
    for y in 0..<(tall ? input.size : height) {
      for c in 0..<input.channels {
        let (start, at) = (y * stride + c, y * line + c)
        if tall { resample(across, middle, start, &out, at, input.channels) }
        else { resample(across, colours, start, &middle, at, input.channels) }
      }
    }
    if !tall {
      for x in 0..<line { resample(down, middle, x, &out, x, line) }
    }
    return out
  }

  private typealias Taps = (first: Int, weights: [Int32])

  /// Triangle filter, antialiased, from the `side` pixels in the middle of `length` to `resize`, of
  /// which those in the middle are kept.
  private func triangle(_ length: Int, _ side: Int) -> [Taps] {
    let scale = Double(side) / Double(input.resize)
    let cut = (input.resize - input.size) / 2
    let support = max(scale, 1)
    let shrink = 1 / support
    return (0..<input.size).map { i in
      let centre = Double(length - side) / 2 + (Double(cut + i) + 0.5) * scale
      let first = max(0, Int(centre - support + 0.5))
      let end = min(length, Int(centre + support + 0.5))
      let heights = (first..<end).map { max(0, 1 - abs((Double($0) - centre + 0.5) * shrink)) }
      let sum = heights.reduce(0, +)
      return (first, heights.map { Int32(0.5 + $0 / sum * Double(1 << 22)) })
    }
  }

  /// Resamples one line of bytes that lie `step` apart.
  private func resample(
    _ taps: [Taps], _ from: [UInt8], _ start: Int, _ to: inout [UInt8], _ at: Int, _ step: Int
  ) {
    for (i, tap) in taps.enumerated() {
      var sum: Int32 = 1 << 21
      let origin = start + tap.first * step
      for (k, weight) in tap.weights.enumerated() { sum += weight * Int32(from[origin + k * step]) }
      to[at + i * step] = UInt8(min(255, max(0, sum >> 22)))
    }
  }
}

// Classifies an image with LiteRT on Android: classes with probabilities, likeliest first.
//
// In build.gradle.kts:
//   implementation("com.google.ai.edge.litert:litert:2.3.0")
//   implementation("androidx.exifinterface:exifinterface:1.3.7")
// In src/main/assets: model.tflite, labels.txt, preprocess.json.
//
// The arithmetic is Pillow's, integer for integer. What Android's decoder may change: JPEG by a few
// levels, 16-bit pixels by 1, and images with a colour profile other than sRGB, which it converts.
import android.content.Context
import android.graphics.BitmapFactory
import androidx.exifinterface.media.ExifInterface
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import java.io.ByteArrayInputStream
import kotlin.math.abs
import kotlin.math.exp
import kotlin.math.max
import kotlin.math.min
import org.json.JSONObject

class Classifier(
    context: Context,
    vararg accelerators: Accelerator = arrayOf(Accelerator.CPU),
) : AutoCloseable {
    private val assets = context.assets
    private val labels = text("labels.txt").lines().dropLast(1)
    private val json = JSONObject(text("preprocess.json"))
    private val size = json.getInt("size")
    private val resize = json.getInt("resize")
    private val channels = json.getInt("channels")
    private val options = CompiledModel.Options(*accelerators)
    private val model = CompiledModel.create(assets, "model.tflite", options)
    private val inputs = model.createInputBuffers()
    private val outputs = model.createOutputBuffers()

    /** The [top] likeliest classes, with probabilities, of an image file's bytes. */
    fun classify(file: ByteArray, top: Int = 3): List<Pair<String, Float>> {
        inputs[0].writeInt8(pixels(file)) // it copies bytes; the model takes them as uint8
        model.run(inputs, outputs)
        val logits = outputs[0].readFloat()
        val largest = logits.max()
        val powers = logits.map { exp(it - largest) }
        val sum = powers.sum()
        return labels.zip(powers.map { it / sum }).sortedByDescending { it.second }.take(top)
    }

    private fun text(name: String) = assets.open(name).bufferedReader().use { it.readText() }

    override fun close() {
        (inputs + outputs).forEach { it.close() }
        model.close()
    }

    /** The model's input: decoded, turned as EXIF says, on white, grey or RGB, resized and cut. */
    private fun pixels(file: ByteArray): ByteArray {
        val options = BitmapFactory.Options().apply { inPremultiplied = false }
        val bitmap = BitmapFactory.decodeByteArray(file, 0, file.size, options)
        requireNotNull(bitmap) { "not an image that can be read" }
        val (w, h) = bitmap.width to bitmap.height
        val argb = IntArray(w * h).also { bitmap.getPixels(it, 0, w, 0, 0, w, h) }
        val exif = ExifInterface(ByteArrayInputStream(file))
        val turn = exif.getAttributeInt(ExifInterface.TAG_ORIENTATION, 1)
        val (mirror, flip) = (turn in listOf(2, 3, 7, 8)) to (turn in listOf(3, 4, 6, 7))
        val (width, height) = if (turn >= 5) h to w else w to h
        val image = ByteArray(width * height * channels)
        for (y in 0 until height) for (x in 0 until width) {
            val across = if (turn >= 5) y else x
            val down = if (turn >= 5) x else y
            val row = if (flip) h - 1 - down else down
            val pixel = argb[row * w + (if (mirror) w - 1 - across else across)]
            val r = onWhite(pixel, 16)
            val g = onWhite(pixel, 8)
            val b = onWhite(pixel, 0)
            val at = (y * width + x) * channels
            val luma = (19595 * r + 38470 * g + 7471 * b + 32768) shr 16
            image[at] = (if (channels == 1) luma else r).toByte()
            if (channels == 3) { image[at + 1] = g.toByte(); image[at + 2] = b.toByte() }
        }
        val side = min(width, height)
        val (line, stride) = size * channels to width * channels
        val across = triangle(width, side)
        val down = triangle(height, side)
        // Pillow 13 resizes columns before rows where the height shrinks by that much more; older
        // ones never do, which makes 1 level of difference.
        val tall = resize < height && height - resize > 2 * (width - resize)
        val out = ByteArray(size * line)
        val middle = ByteArray(if (tall) size * stride else height * line)
        if (tall) for (x in 0 until stride) resample(down, image, x, middle, x, stride)
        val (from, to) = if (tall) middle to out else image to middle
        for (y in 0 until (if (tall) size else height)) for (c in 0 until channels)
            resample(across, from, y * stride + c, to, y * line + c, channels)
        if (!tall) for (x in 0 until line) resample(down, middle, x, out, x, line)
        return out
    }

    private fun onWhite(argb: Int, shift: Int): Int {
        val alpha = argb ushr 24
        val mixed = ((argb shr shift) and 255) * alpha + 255 * (255 - alpha) + 128
        return (128 * mixed + mixed / 2) shr 15 // mixed / 255, as Pillow divides
    }

    private class Taps(val first: Int, val weights: IntArray)

    /** Triangle filter, antialiased, from the [side] pixels in the middle of [length] to [resize],
     *  of which the [size] in the middle are kept. */
    private fun triangle(length: Int, side: Int): List<Taps> = List(size) { i ->
        val scale = side.toDouble() / resize
        val support = max(scale, 1.0)
        val shrink = 1 / support
        val centre = (length - side) / 2.0 + ((resize - size) / 2 + i + 0.5) * scale
        val first = max(0, (centre - support + 0.5).toInt())
        val end = min(length, (centre + support + 0.5).toInt())
        val heights = (first until end).map { max(0.0, 1 - abs((it - centre + 0.5) * shrink)) }
        val sum = heights.sum()
        Taps(first, IntArray(heights.size) { (0.5 + heights[it] / sum * (1 shl 22)).toInt() })
    }

    /** Resamples one line of bytes that lie [step] apart. */
    private fun resample(
        taps: List<Taps>, from: ByteArray, start: Int, to: ByteArray, at: Int, step: Int,
    ) {
        for (i in taps.indices) {
            val weights = taps[i].weights
            val origin = start + taps[i].first * step
            var sum = 1 shl 21
            for (k in weights.indices) sum += weights[k] * (from[origin + k * step].toInt() and 255)
            to[at + i * step] = (sum shr 22).coerceIn(0, 255).toByte()
        }
    }
}

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.concurrent.atomic.AtomicLongArray;
import java.util.zip.Deflater;
import java.util.zip.Inflater;

/**
 * Works in three threads by native memory, and compares each result with what it must be, while a tracer does something to it. For each
 * line on its input it says "alive" when every thread has got two more right results. It ends with its input.
 */
public final class Checked {
    private static final int THREADS = 3;
    private static final AtomicLongArray ROUNDS = new AtomicLongArray(THREADS);

    private static void work(int number) {
        try {
            byte[] text = new byte[20_000 + number * 1000];
            for (int i = 0; i < text.length; i++) text[i] = (byte) (i * 31 % (50 + number));
            byte[] packed = new byte[text.length + 100], unpacked = new byte[text.length];
            for (long round = 0;; round++) {
                Deflater deflater = new Deflater(1 + (int) (round % 9));
                deflater.setInput(text);
                deflater.finish();
                int length = deflater.deflate(packed);
                deflater.end();
                Inflater inflater = new Inflater();
                inflater.setInput(packed, 0, length);
                int size = inflater.inflate(unpacked);
                inflater.end();
                ByteBuffer direct = ByteBuffer.allocateDirect(text.length);
                direct.put(unpacked).flip();
                byte[] copy = new byte[text.length];
                direct.get(copy);
                if (size != text.length || !Arrays.equals(copy, text)) throw new IllegalStateException("wrong");
                ROUNDS.incrementAndGet(number);
            }
        } catch (Throwable wrong) {
            System.out.println(wrong);
            Runtime.getRuntime().halt(105);
        }
    }

    public static void main(String[] arguments) throws Exception {
        System.out.println("{\"pid\":" + ProcessHandle.current().pid() + ",\"expect\":{\"leaks\":[]}}");
        for (int i = 0; i < THREADS; i++) {
            int number = i;
            Thread thread = new Thread(() -> work(number));
            thread.setDaemon(true);
            thread.start();
        }
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        while (input.readLine() != null) {
            for (int i = 0; i < THREADS; i++) {
                long before = ROUNDS.get(i);
                while (ROUNDS.get(i) < before + 2) Thread.sleep(2);
            }
            System.out.println("alive");
        }
        long sum = 0;
        for (int i = 0; i < THREADS; i++) sum += ROUNDS.get(i);
        System.out.println(sum + " results were right");
        Runtime.getRuntime().halt(0);
    }
}

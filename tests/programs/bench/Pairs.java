import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.lang.management.ManagementFactory;
import java.lang.management.ThreadMXBean;
import java.lang.reflect.Field;
import sun.misc.Unsafe;

/**
 * As `pairs.c`, from Java methods: pairs of malloc and free by Unsafe, with so many methods on the stack. To be run with -XX:-Inline, so that
 * each method has a frame of its own, and with -Xint or not.
 *
 * Says `ready PID`. For each line on its input, `DEPTH MILLISECONDS`, makes pairs for that long with `DEPTH` methods on the stack, and
 * answers with the nanoseconds of CPU time that one pair took. Ends with its input.
 */
public final class Pairs {
    private static final int SIZE = 40, BATCH = 64;
    private static final Unsafe UNSAFE = unsafe();

    private Pairs() {}

    private static Unsafe unsafe() {
        try {
            Field field = Unsafe.class.getDeclaredField("theUnsafe");
            field.setAccessible(true);
            return (Unsafe) field.get(null);
        } catch (ReflectiveOperationException error) {
            throw new IllegalStateException(error);
        }
    }

    private static long pairs(long until) {
        long count = 0;
        for (; System.nanoTime() < until; count += BATCH)
            for (int i = 0; i < BATCH; i++) UNSAFE.freeMemory(UNSAFE.allocateMemory(SIZE));
        return count;
    }

    private static long descend(int methods, long until) {
        return methods <= 0 ? pairs(until) : descend(methods - 1, until);
    }

    public static void main(String[] arguments) throws Exception {
        // Both compilers have had them before the first line comes.
        long end = System.nanoTime() + 2_000_000_000L;
        while (System.nanoTime() < end) descend(40, 0);
        pairs(System.nanoTime() + 500_000_000L);
        ThreadMXBean threads = ManagementFactory.getThreadMXBean();
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        System.out.println("ready " + ProcessHandle.current().pid());
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            String[] words = line.split(" ");
            long before = threads.getCurrentThreadCpuTime();
            // Besides these: `main`, `pairs`, the last `descend`, and Unsafe's two.
            long until = System.nanoTime() + Long.parseLong(words[1]) * 1_000_000;
            long made = descend(Integer.parseInt(words[0]) - 5, until);
            System.out.println((double) (threads.getCurrentThreadCpuTime() - before) / made);
        }
    }
}

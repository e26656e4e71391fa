import java.io.PrintWriter;
import java.lang.reflect.Method;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;

/**
 * Allocates native memory in virtual threads (Java 21 and later), before and after they have waited, and states its stacks, as `Frames` does.
 *
 *     java VirtualThreads FILE ROUNDS
 */
public final class VirtualThreads {
    private static final List<Object> KEPT = new ArrayList<>();
    private static final List<Throwable> STATED = new ArrayList<>();

    private VirtualThreads() {}

    // On one line: so both are at the same place.
    static synchronized void leak() {
        KEPT.add(ByteBuffer.allocateDirect(48)); STATED.add(new Throwable());
    }

    static void recurse(int depth, boolean waits) {
        if (depth > 0) recurse(depth - 1, waits); else act(waits);
    }

    private static void act(boolean waits) {
        if (waits) {
            try {
                Thread.sleep(1);
            } catch (InterruptedException impossible) {
                throw new AssertionError(impossible);
            }
        }
        leak();
    }

    private static void run(boolean waits) throws Exception {
        // Java 11, which this is compiled for, has none.
        Method start = Thread.class.getMethod("startVirtualThread", Runnable.class);
        Runnable work = () -> recurse(20, waits);
        ((Thread) start.invoke(null, work)).join();
    }

    public static void main(String[] arguments) throws Exception {
        run(true);
        STATED.clear();
        System.out.println("{\"pid\": " + ProcessHandle.current().pid() + ", \"expect\": {\"leaks\": []}}");
        System.out.flush();
        if (System.in.read() < 0) return;
        int rounds = Integer.parseInt(arguments[1]);
        for (int round = 0; round < rounds; round++) {
            run(false);
            run(true);
        }
        try (PrintWriter out = new PrintWriter(arguments[0])) {
            for (Throwable stated : STATED) {
                for (StackTraceElement frame : stated.getStackTrace()) {
                    String file = frame.getFileName() == null ? "" : frame.getFileName();
                    out.println(frame.getClassName() + "." + frame.getMethodName() + "\t" + file + "\t" + frame.getLineNumber());
                }
                out.println();
            }
        }
        System.out.println("done");
        System.out.flush();
        while (System.in.read() >= 0) continue;
    }
}

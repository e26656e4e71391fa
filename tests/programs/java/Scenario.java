import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.zip.Inflater;

/**
 * Programs whose truth is known, for the scenarios. The argument names one: `buffers` keeps direct ByteBuffers, `inflaters` makes
 * Inflaters and never ends them, `heap` keeps objects.
 */
public final class Scenario {
    private static final long WORK_MS = 8500;
    private static final List<Object> KEPT = new ArrayList<>(1 << 20);

    private Scenario() {}

    static void keepBuffer() {
        KEPT.add(ByteBuffer.allocateDirect(64 * 1024));
    }

    static void forgetInflater() {
        Inflater inflater = new Inflater();
        inflater.setInput(new byte[] {0x78, (byte) 0x9c, 0x03, 0, 0, 0, 0, 1});
        try {
            inflater.inflate(new byte[16]);
        } catch (java.util.zip.DataFormatException impossible) {
            throw new AssertionError(impossible);
        }
        KEPT.add(inflater);
    }

    static void keepObjects() {
        for (int i = 0; i < 100; i++) KEPT.add(new byte[1000]);
    }

    public static void main(String[] arguments) throws Exception {
        Runnable work;
        switch (arguments[0]) {
            case "buffers": work = Scenario::keepBuffer; break;
            case "inflaters": work = () -> { for (int i = 0; i < 12; i++) forgetInflater(); }; break;
            case "heap": work = Scenario::keepObjects; break;
            default: throw new IllegalArgumentException(arguments[0]);
        }
        // Classes are loaded before.
        for (int i = 0; i < 20; i++) work.run();
        say("{\"pid\": " + ProcessHandle.current().pid() + ", \"expect\": {\"leaks\": []}}");
        if (System.in.read() < 0) return;
        for (long started = System.nanoTime(); System.nanoTime() - started < WORK_MS * 1_000_000; ) {
            work.run();
            Thread.sleep(10);
        }
        say("done");
        while (System.in.read() >= 0) continue;
    }

    private static void say(String line) {
        System.out.println(line);
        System.out.flush();
    }
}

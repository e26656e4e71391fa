import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.zip.Inflater;

/**
 * Programs whose truth is known, for the scenarios. The argument names one: `buffers` keeps direct ByteBuffers, `inflaters` makes
 * Inflaters and never ends them, `heap` keeps objects. Says `worked` when it has done enough to be judged, works on until a line comes,
 * and then is quiet.
 */
public final class Scenario {
    private static final long TICK_NS = 10_000_000;
    private static final int ENOUGH_TICKS = 750;
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
        if (!readLine()) return;
        long started = System.nanoTime();
        for (int tick = 0; System.in.available() == 0; tick++) {
            work.run();
            if (tick == ENOUGH_TICKS) say("worked");
            // What was missed is made up for.
            long rest = started + TICK_NS * (tick + 1) - System.nanoTime();
            if (rest > 0) Thread.sleep(rest / 1_000_000, (int) (rest % 1_000_000));
        }
        readLine();
        say("done");
        while (System.in.read() >= 0) continue;
    }

    private static boolean readLine() throws Exception {
        int read = System.in.read();
        while (read >= 0 && read != '\n') read = System.in.read();
        return read >= 0;
    }

    private static void say(String line) {
        System.out.println(line);
        System.out.flush();
    }
}

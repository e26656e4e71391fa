import java.io.ByteArrayOutputStream;
import java.io.InputStream;
import java.io.PrintWriter;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;

/**
 * Loads classes that are alike but for their names, one after the other, each by a loader of its own, and lets the collector unload them: the
 * next one has the same place in memory. Each allocates native memory, and its stack is stated, as by `Frames`.
 *
 *     java Reloaded FILE CLASSES
 */
public final class Reloaded {
    private static final List<Object> KEPT = new ArrayList<>();
    private static final List<String> STATED = new ArrayList<>();

    private Reloaded() {}

    /** What is loaded under other names of the same length. */
    public static final class Copy000000 implements Runnable {
        @Override public void run() {
            inner(2);
        }

        private static void inner(int depth) {
            if (depth > 0) inner(depth - 1); else leak();
        }
    }

    static final class Loader extends ClassLoader {
        Loader() { super(Reloaded.class.getClassLoader()); }
        Class<?> define(String name, byte[] bytes) { return defineClass(name, bytes, 0, bytes.length); }
    }

    // On one line: so both are at the same place.
    public static void leak() {
        KEPT.add(ByteBuffer.allocateDirect(48)); STATED.add(text(new Throwable().getStackTrace()));
    }

    private static String text(StackTraceElement[] stack) {
        StringBuilder text = new StringBuilder();
        for (StackTraceElement frame : stack) {
            text.append(frame.getClassName()).append('.').append(frame.getMethodName());
            text.append('\t').append(frame.getFileName() == null ? "" : frame.getFileName());
            text.append('\t').append(frame.getLineNumber()).append('\n');
        }
        return text.toString();
    }

    private static byte[] template() throws Exception {
        try (InputStream in = Reloaded.class.getResourceAsStream("Reloaded$Copy000000.class")) {
            ByteArrayOutputStream bytes = new ByteArrayOutputStream();
            in.transferTo(bytes);
            return bytes.toByteArray();
        }
    }

    private static void load(byte[] template, int number) throws Exception {
        String name = String.format("Copy%06d", number);
        String bytes = new String(template, StandardCharsets.ISO_8859_1).replace("Copy000000", name);
        Class<?> loaded = new Loader().define("Reloaded$" + name, bytes.getBytes(StandardCharsets.ISO_8859_1));
        ((Runnable) loaded.getDeclaredConstructor().newInstance()).run();
    }

    public static void main(String[] arguments) throws Exception {
        byte[] template = template();
        load(template, 1);
        STATED.clear();
        System.out.println("{\"pid\": " + ProcessHandle.current().pid() + ", \"expect\": {\"leaks\": []}}");
        System.out.flush();
        if (System.in.read() < 0) return;
        int classes = Integer.parseInt(arguments[1]);
        for (int number = 2; number < classes + 2; number++) {
            load(template, number);
            // A collection takes longer the more is kept.
            if (number % Math.max(5, classes / 4000) == 0) System.gc();
        }
        try (PrintWriter out = new PrintWriter(arguments[0])) {
            STATED.forEach(out::println);
        }
        System.out.println("done");
        System.out.flush();
        while (System.in.read() >= 0) continue;
    }
}

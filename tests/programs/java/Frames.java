import java.io.PrintWriter;
import java.lang.invoke.MethodHandle;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;
import java.lang.reflect.InvocationHandler;
import java.lang.reflect.Method;
import java.lang.reflect.Proxy;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.TreeSet;
import java.util.concurrent.Callable;
import java.util.concurrent.FutureTask;
import java.util.function.IntUnaryOperator;
import java.util.function.Supplier;
import java.util.stream.IntStream;
import java.util.zip.Deflater;

/**
 * Allocates native memory from Java in every way that the names of methods are told of, and states its own stack each time.
 *
 *     java Frames FILE ROUNDS SECONDS
 *
 * First everything is new, and interpreted; then it runs for SECONDS, so that both compilers have their turn, and ROUNDS more are stated. Leaves
 * in FILE, for each allocation, a line of `class.method TAB file TAB line` for each method, innermost first, and an empty one.
 */
public final class Frames {
    private static final int SIZE = 48;
    private static final List<Object> KEPT = new ArrayList<>();
    private static final List<Throwable> STATED = new ArrayList<>();
    private static boolean states;
    private static int sum;

    private Frames() {}

    // On one line: so both are at the same place.
    static void leak() {
        if (states) { synchronized (KEPT) { KEPT.add(ByteBuffer.allocateDirect(SIZE)); STATED.add(new Throwable()); } } else { sum++; }
    }

    static void leakDeflater() {
        if (states) { synchronized (KEPT) { KEPT.add(new Deflater()); STATED.add(new Throwable()); } } else { sum++; }
    }

    interface Way { void go() throws Throwable; }

    static void recurse(int depth) {
        if (depth == 0) leak(); else recurse(depth - 1);
    }

    // Small enough to be inlined into each other.
    static void inlined() { inlined1(); }
    private static void inlined1() { inlined2(); }
    private static void inlined2() { inlined3(); }
    private static void inlined3() { leak(); }

    static int loop() {
        int total = 0;
        for (int i = 0; i < 20_000; i++) total += i ^ total;
        leak();
        return total;
    }

    static class Base {
        Base() { leak(); }
        void method() { leak(); }
        synchronized void guarded() { leak(); }
        static void made() { leak(); }
    }

    static final class Derived extends Base {
        private final int value;
        Derived() { value = initial(); }
        private static int initial() { leak(); return 1; }
        @Override void method() { super.method(); }
        class Inner { void method() { leak(); } }
    }

    interface Shape { void draw(); default void twice() { draw(); } }
    static final class Circle implements Shape { public void draw() { leak(); } }
    static final class Square implements Shape { public void draw() { leak(); } }
    static final class Line implements Shape { public void draw() { leak(); } }
    private static final Shape[] SHAPES = {new Circle(), new Square(), new Line()};

    enum Kind implements Shape {
        FIRST { public void draw() { leak(); } }, SECOND { public void draw() { leak(); } }
    }

    static final class Item implements Comparable<Item> {
        private final int number;
        Item(int number) { this.number = number; }
        @Override public int compareTo(Item other) { leak(); return Integer.compare(number, other.number); }
    }

    static void caught() {
        try {
            Integer.parseInt("x");
        } catch (NumberFormatException error) {
            leak();
        } finally {
            leak();
        }
    }

    static void thrown() {
        try {
            throwDeep(5);
        } catch (IllegalStateException error) {
            leak();
        }
    }

    private static void throwDeep(int depth) {
        if (depth == 0) throw new IllegalStateException();
        throwDeep(depth - 1);
    }

    /** Many values that live across the call. */
    static long spilled(long a, long b, long c, long d, long e, long f, long g, long h) {
        long i = a * b, j = c * d, k = e * f, l = g * h, m = a ^ d, n = b ^ c;
        double x = a * 0.5, y = b * 0.25, z = c * 0.125;
        leak();
        return a + b + c + d + e + f + g + h + i + j + k + l + m + n + (long) (x + y + z);
    }

    public static void reflected() { leak(); }

    static void handled(String text, int number) { leak(); }

    private static final MethodHandle HANDLE = handle();
    private static final Method REFLECTED = reflection();
    private static final Runnable PROXY = (Runnable) Proxy.newProxyInstance(Frames.class.getClassLoader(),
            new Class<?>[] {Runnable.class}, new InvocationHandler() {
                @Override public Object invoke(Object proxy, Method method, Object[] arguments) { leak(); return null; }
            });

    private static MethodHandle handle() {
        try {
            return MethodHandles.lookup().findStatic(Frames.class, "handled",
                    MethodType.methodType(void.class, String.class, int.class));
        } catch (ReflectiveOperationException impossible) {
            throw new AssertionError(impossible);
        }
    }

    private static Method reflection() {
        try {
            return Frames.class.getMethod("reflected");
        } catch (ReflectiveOperationException impossible) {
            throw new AssertionError(impossible);
        }
    }

    // As long as no class overrides `value`, compiled code has it inlined. When one does, that code is given up, while it is on the stack.
    static class First { int value() { return 1; } }
    static final class FirstLoaded extends First { @Override int value() { return 2; } }
    static class Second { int value() { return 1; } }
    static final class SecondLoaded extends Second { @Override int value() { return 2; } }

    static int first(First first, boolean load) {
        int before = first.value();
        loadFirst(load);
        return before + first.value();
    }

    private static void loadFirst(boolean load) {
        if (load) sum += new FirstLoaded().value();
        leak();
    }

    static int second(Second second, boolean load) {
        int before = second.value();
        sum += loadSecond(load, 3);
        return before + second.value();
    }

    private static int loadSecond(boolean load, int depth) {
        if (depth > 0) return loadSecond(load, depth - 1);
        if (load) sum += new SecondLoaded().value();
        leak();
        return sum;
    }

    private static final Way[] WAYS = {
        Frames::leak,
        Frames::leakDeflater,
        () -> leak(),
        () -> recurse(3),
        () -> recurse(40),
        Frames::inlined,
        () -> sum += loop(),
        () -> new Derived().method(),
        () -> new Derived().guarded(),
        () -> new Derived().new Inner().method(),
        () -> Derived.made(),
        () -> { for (Shape shape : SHAPES) shape.draw(); },
        () -> { for (Shape shape : SHAPES) shape.twice(); },
        () -> { for (Kind kind : Kind.values()) kind.draw(); },
        () -> Arrays.asList(3, 1, 2).forEach(number -> leak()),
        () -> sum += IntStream.range(0, 3).map(number -> { leak(); return number; }).sum(),
        () -> { List<Integer> all = new ArrayList<>(Arrays.asList(3, 1, 2)); all.sort((a, b) -> { leak(); return a - b; }); },
        () -> { TreeSet<Item> set = new TreeSet<>(); for (int i = 0; i < 3; i++) set.add(new Item(i)); },
        () -> { Supplier<IntUnaryOperator> outer = () -> number -> { leak(); return number; }; sum += outer.get().applyAsInt(1); },
        Frames::caught,
        Frames::thrown,
        () -> sum += (int) spilled(1, 2, 3, 4, 5, 6, 7, 8),
        () -> REFLECTED.invoke(null),
        () -> { HANDLE.invokeExact("text", 1); },
        () -> { HANDLE.invoke("text", 1); },
        PROXY::run,
        () -> sum += first(new First(), false),
        () -> sum += second(new Second(), false),
        () -> { Callable<Integer> work = () -> { leak(); return 1; }; FutureTask<Integer> task = new FutureTask<>(work); task.run(); },
    };

    private static void round() throws Throwable {
        for (Way way : WAYS) way.go();
    }

    private static void warm(long seconds) throws Throwable {
        long end = System.nanoTime() + seconds * 1_000_000_000;
        while (System.nanoTime() < end) round();
    }

    private static void state(int rounds) throws Throwable {
        states = true;
        for (int i = 0; i < rounds; i++) round();
        Thread thread = new Thread(() -> { leak(); recurse(2); }, "worker");
        thread.start();
        thread.join();
        states = false;
    }

    public static void main(String[] arguments) throws Throwable {
        // Its library is loaded before.
        new Deflater().end();
        say("{\"pid\": " + ProcessHandle.current().pid() + ", \"expect\": {\"leaks\": []}}");
        if (!readLine()) return;
        int rounds = Integer.parseInt(arguments[1]);
        state(2);
        for (int i = 0; i < 20; i++) round();
        state(rounds);
        warm(Long.parseLong(arguments[2]));
        state(rounds);
        states = true;
        sum += first(new First(), true) + second(new Second(), true);
        states = false;
        write(arguments[0]);
        say("done");
        while (System.in.read() >= 0) continue;
    }

    private static void write(String file) throws Exception {
        try (PrintWriter out = new PrintWriter(file)) {
            for (Throwable stated : STATED) {
                for (StackTraceElement frame : stated.getStackTrace()) {
                    String name = frame.getFileName() == null ? "" : frame.getFileName();
                    out.println(frame.getClassName() + "." + frame.getMethodName() + "\t" + name + "\t" + frame.getLineNumber());
                }
                out.println();
            }
        }
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

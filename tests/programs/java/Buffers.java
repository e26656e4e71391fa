import java.nio.ByteBuffer;

/** Speaks the protocol of tests/README.md: keeps 50 direct buffers of 100,000 bytes. */
public final class Buffers {
    private static final ByteBuffer[] KEPT = new ByteBuffer[51];

    private Buffers() {}

    public static void main(String[] arguments) throws Exception {
        KEPT[50] = ByteBuffer.allocateDirect(100_000);
        System.out.println("{\"pid\": " + ProcessHandle.current().pid() + ", \"expect\": {\"leaks\": []}}");
        while (System.in.read() != '\n') continue;
        for (int i = 0; i < 50; i++) KEPT[i] = ByteBuffer.allocateDirect(100_000);
        System.out.println("done");
        while (System.in.read() >= 0) continue;
    }
}

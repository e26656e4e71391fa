// Work that calls native code, for `cargo xtask bench stacks`: compression, direct buffers, files. Says `ready PID`; ends with its input.
import java.io.ByteArrayOutputStream;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.zip.Deflater;
import java.util.zip.GZIPOutputStream;

public class Work {
    public static void main(String[] arguments) throws Exception {
        Thread worker = new Thread(Work::work);
        worker.setDaemon(true);
        worker.start();
        System.out.println("ready " + ProcessHandle.current().pid());
        while (System.in.read() >= 0) {}
        System.exit(0);
    }

    private static void work() {
        try {
            for (int number = 0; ; number++) {
                compress(("text " + number).repeat(number % 99));
                ByteBuffer.allocateDirect(1000 + number % 100).putInt(0, number);
                Path file = Files.createTempFile("work", ".txt");
                Files.writeString(file, "text");
                Files.readAllBytes(file);
                Files.delete(file);
            }
        } catch (Exception error) {
            error.printStackTrace();
            System.exit(1);
        }
    }

    private static void compress(String text) throws Exception {
        Deflater deflater = new Deflater();
        deflater.setInput(text.getBytes());
        deflater.finish();
        deflater.deflate(new byte[9999]);
        deflater.end();
        try (GZIPOutputStream out = new GZIPOutputStream(new ByteArrayOutputStream())) {
            out.write(text.getBytes());
        }
    }
}

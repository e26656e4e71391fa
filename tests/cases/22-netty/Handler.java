// netty 4.1: direct buffers that nobody releases; its pool takes one chunk of 16 MiB after the other.
import io.netty.buffer.ByteBuf;
import io.netty.buffer.PooledByteBufAllocator;

public class Handler {
    static long handled;

    static void handle() {
        ByteBuf buffer = PooledByteBufAllocator.DEFAULT.directBuffer(64 * 1024);
        buffer.writeZero(64 * 1024);
        handled += buffer.readableBytes();
    }

    public static void main(String[] arguments) throws InterruptedException {
        System.out.println("ready");
        while (true) {
            handle();
            handle();
            Thread.sleep(20);
        }
    }
}

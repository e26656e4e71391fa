// netty 4.1: bursts of direct buffers from its pool, every one released. Nothing leaks; chunks come and go, and some stay.
import io.netty.buffer.ByteBuf;
import io.netty.buffer.PooledByteBufAllocator;

import java.util.ArrayList;
import java.util.List;

public class Bursts {
    static void burst(int buffers) {
        List<ByteBuf> held = new ArrayList<>();
        for (int i = 0; i < buffers; i++) {
            ByteBuf buffer = PooledByteBufAllocator.DEFAULT.directBuffer(16 * 1024 + i % 7 * 8 * 1024);
            buffer.writeZero(buffer.capacity());
            held.add(buffer);
        }
        held.forEach(ByteBuf::release);
    }

    public static void main(String[] arguments) throws InterruptedException {
        System.out.println("ready");
        for (int i = 0;; i++) {
            burst(500 + i % 5 * 500);
            Thread.sleep(300);
        }
    }
}

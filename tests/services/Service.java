// A service that leaks: Inflaters that nobody ends. What they hold is zlib's, not Java's.
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.ArrayList;
import java.util.List;
import java.util.zip.Inflater;

public class Service {
    static final List<Inflater> KEPT = new ArrayList<>();

    static void handle() {
        KEPT.add(new Inflater());
    }

    public static void main(String[] arguments) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress(8978), 0);
        server.createContext("/", exchange -> {
            handle();
            exchange.sendResponseHeaders(200, 5);
            exchange.getResponseBody().write("done\n".getBytes());
            exchange.close();
        });
        server.start();
    }
}

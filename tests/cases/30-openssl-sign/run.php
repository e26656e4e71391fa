<?php
// PHP 8.2: openssl_sign() that is given an unknown digest keeps the key that it has parsed.
$key = file_get_contents($argv[1]);

function sign_request(string $key): bool
{
    return @openssl_sign('request', $signature, $key, 'no such digest');
}

echo "ready\n";
while (true) {
    for ($i = 0; $i < 50; $i++) {
        sign_request($key);
    }
    usleep(50_000);
}

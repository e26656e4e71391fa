<?php
// A page that leaks: openssl_sign with an unknown digest keeps the key (php/php-src#18185).
static $key;
$key ??= openssl_pkey_new();
openssl_pkey_export($key, $pem);
for ($i = 0; $i < 20; $i++) @openssl_sign('order', $signature, $pem, 'unknown');
echo "done\n";

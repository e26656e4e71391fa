<?php
// PHP keeps the last 4,096 regular expressions compiled. Who makes them up anew each time fills that, and no more. Nothing leaks.
function find(int $n): void
{
    preg_match("/^item-$n-(\\d+)(?:,\\s*[a-z]{2,8})*$/", "item-$n-17, red");
}

echo "ready\n";
for ($n = 0; ; $n++) {
    find($n);
    if ($n % 40 == 0) {
        usleep(20_000);
    }
}

#!/usr/bin/env python3
"""Makes a page of a terminal's screen, to be photographed:

    tmux capture-pane -e -p | docs/images/terminal.py > screen.html
    chromium --headless --no-sandbox --hide-scrollbars --force-device-scale-factor=1.5 --window-size=975,575 \
        --screenshot=tui.png screen.html
"""
import html
import re
import sys

BASIC = ["#282c34", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#abb2bf"]
BRIGHT = ["#5c6370", "#ff7b86", "#b5e890", "#ffd68a", "#7cc4ff", "#dd94f0", "#6fd3df", "#ffffff"]
PAPER, INK = "#1e2127", "#d7dae0"


def indexed(number):
    if number < 16:
        return (BASIC + BRIGHT)[number]
    if number < 232:
        level = [0, 95, 135, 175, 215, 255]
        number -= 16
        return "#%02x%02x%02x" % (level[number // 36], level[number // 6 % 6], level[number % 6])
    grey = 8 + 10 * (number - 232)
    return "#%02x%02x%02x" % (grey, grey, grey)


class Pen:
    def __init__(self):
        self.reset()

    def reset(self):
        self.fg = self.bg = None
        self.bold = self.dim = self.reverse = False

    def take(self, codes):
        codes = [int(code or 0) for code in codes.split(";")]
        while codes:
            code = codes.pop(0)
            if code == 0:
                self.reset()
            elif code == 1:
                self.bold = True
            elif code == 2:
                self.dim = True
            elif code == 7:
                self.reverse = True
            elif code == 22:
                self.bold = self.dim = False
            elif code == 27:
                self.reverse = False
            elif code in (38, 48) and codes[:1] == [5]:
                color = indexed(codes[1])
                codes = codes[2:]
                if code == 38:
                    self.fg = color
                else:
                    self.bg = color
            elif 30 <= code <= 37:
                self.fg = BASIC[code - 30]
            elif 90 <= code <= 97:
                self.fg = BRIGHT[code - 90]
            elif 40 <= code <= 47:
                self.bg = BASIC[code - 40]
            elif code == 39:
                self.fg = None
            elif code == 49:
                self.bg = None

    def style(self):
        fg, bg = self.fg or INK, self.bg
        if self.reverse:
            fg, bg = bg or PAPER, fg
        parts = [f"color:{fg}"]
        if bg:
            parts.append(f"background:{bg}")
        if self.bold:
            parts.append("font-weight:bold")
        if self.dim:
            parts.append("opacity:.72")
        return ";".join(parts)


def main():
    pen, out = Pen(), []
    for line in sys.stdin.read().rstrip("\n").split("\n"):
        for part in re.split(r"(\x1b\[[0-9;]*m)", line):
            code = re.fullmatch(r"\x1b\[([0-9;]*)m", part)
            if code:
                pen.take(code[1])
            elif part:
                out.append(f'<span style="{pen.style()}">{html.escape(part)}</span>')
        out.append("\n")
    print(
        f'<!doctype html><meta charset="utf-8"><body style="margin:0;background:{PAPER}">'
        '<pre style="margin:14px;font:14px/16px \'DejaVu Sans Mono\',monospace">' + "".join(out) + "</pre>"
    )


main()

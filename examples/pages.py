"""What the notebooks share."""

from PIL import Image, ImageDraw, ImageFont, ImageOps


def beside(*paths):
    """Put pages side by side, in at most 256 colours, which keeps a notebook small."""
    pages = [Image.open(path).convert("RGB") for path in paths]
    height = max(page.height for page in pages)
    joined = Image.new("RGB", (sum(page.width for page in pages), height), "white")
    left = 0
    for page in pages:
        joined.paste(page, (left, 0))
        left += page.width
    return joined.quantize(method=Image.Quantize.MAXCOVERAGE)


def captioned(pictures):
    """Put pictures of one size side by side, each below its name."""
    width, height = next(iter(pictures.values())).size
    joined = Image.new("RGB", (len(pictures) * (width + 8), height + 36), "white")
    pen, font = ImageDraw.Draw(joined), ImageFont.load_default(26)
    for left, (name, picture) in zip(range(0, joined.width, width + 8), pictures.items()):
        pen.text((left + width // 2, 27), name, "black", font, "ms")
        joined.paste(picture, (left, 36))
    return joined.quantize()


def enlarge(picture, times=2):
    """Make each pixel a square of `times` × `times` pixels."""
    size = (picture.width * times, picture.height * times)
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST)


def draw_square(picture, middle, size, label="", colour="yellow"):
    """Draw a square with a black outline around `middle` (x, y), and a label above it."""
    x, y = middle
    left, top, right, bottom = x - size // 2, y - size // 2, x + size // 2, y + size // 2
    pen = ImageDraw.Draw(picture)
    pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="black", width=5)
    pen.rectangle((left, top, right, bottom), outline=colour, width=3)
    above = top > 26  # else there is no room
    place, anchor = ((x, top - 3), "mb") if above else ((x, top + 5), "mt")
    font = ImageFont.load_default(20)
    pen.text(place, label, colour, font, anchor, stroke_width=2, stroke_fill="black")
    return picture


def draw_patches(title, rows, field, size):
    """Draw a row of patches for each channel.

    `rows` holds lists of (photograph, middle) by channel. A patch is a square of `field` pixels,
    grey where it hangs over the border. In it, a yellow square shows `size` pixels.
    """
    step, half = field + 8, field // 2
    longest = max(len(row) for row in rows.values())
    sheet = Image.new("RGB", (60 + longest * step, 48 + len(rows) * step), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(24)
    pen.text((4, 2), title, "black", ImageFont.load_default(36))
    for line, (channel, row) in enumerate(rows.items()):
        top = 48 + line * step
        pen.text((4, top + half), str(channel), "black", font, "lm")
        for column, (photograph, (x, y)) in enumerate(row):
            wide = ImageOps.expand(photograph, half, "grey")
            patch = wide.crop((x, y, x + field, y + field))
            draw_square(patch, (half, half), size)
            sheet.paste(patch, (60 + column * step, top))
    return sheet

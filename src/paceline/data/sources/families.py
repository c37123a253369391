"""Handwriting font families used by `fontwriters`, with the SHA-256 of each font file.

Each has the 62 letters and digits as 62 different glyphs, and a package below 2 MB. The first five represent different
handwriting styles, so that a small selection is varied.
"""

from __future__ import annotations

__all__ = ["FAMILIES", "VERSION"]

VERSION = "5.3.0"
"""Version of the packages."""

FAMILIES = {
    "caveat": "d0b7b931b8980049327e8f8f9ac264617c8200b8422d62e886473d3d9527bad3",
    "homemade-apple": "bbaa96c741caa479d4647fc567f64e5ddc71eec58ee9849cb9e8a14bee65bc30",
    "reenie-beanie": "f86de18375e3edba402d39ff85030e270f724d7af865f74a74c92f34a947072c",
    "architects-daughter": "284a3c1856b253a681c180bf5328cae3b94d4aaab702f6385490ec4e1b449df3",
    "indie-flower": "cb57752edc96294323252e8d84fa25f975943b2ef3e87b2c984b15ca935d7657",
    "alex-brush": "461b4c649c372f274cbea95758990e3a6e98524fe7fcbab22dcd9809a1715c49",
    "allura": "203583457d9c8cc90309f580dbf27a5fa9ed2893f06b8404ebb4c05e909c18e5",
    "annie-use-your-telescope": "26d9ba2054906590316cafe4fee055a4d43fa804a5f44c2aa1bd91911d495f10",
    "bad-script": "01c47bfe80281d0a2f2554f1226de5e75fca6655751c287bf1590ce350c23971",
    "caveat-brush": "1e1ef30f8b69c21206603097ad0ba68591539af68214f7cfb2fbd23991accd48",
    "cedarville-cursive": "ac7aa92ed78f9e9598a1efa3aa33b3963daf276b1f4851baa104f647d5f648d8",
    "comic-neue": "b7753f30f8bd4925cf48a2ffe936c52ff1f16fe441f8c0245acf046296ac590f",
    "cookie": "4e8b3c170321fd6a38ad24b7df1aebf59b19d9f07fada7beef10f7e5664b13f9",
    "damion": "a49d16838398e9b22a408f9583d79d3cb9307d74ede93182ad50aa1767f47cc1",
    "dancing-script": "570e4265bbcb453353ce2fdf63d179332d8daa92691d567547b8a383f3b46c3b",
    "delius": "ff2f88a12630943f6104ad66149506e5cead8a7c8e85db3263b0e970cfb17994",
    "gloria-hallelujah": "90b0ef8d2ed6d4b46b4e010e7b335b182c45c330a15bac3ca76497dbae544700",
    "gochi-hand": "8851738d8167bd0384db9dee1df6e5b5e2f9221e613e3466cdea19587a81d7b6",
    "grand-hotel": "02d8c91b4e1ba7a92bfd5aba8670e569a7187044b07b84f9449e047f6fa63104",
    "handlee": "d3807ea30015f5082c0a3e2b7803885310db888be091dbc86fecb1ca67f3c622",
    "itim": "733235cab0000b011f318ba1028f1867ddc16e506ec8231f4134e9c0755d5ca6",
    "kalam": "954410601a823f37e219f7930b7446f86afa15621326a7078d56fb9c910135cb",
    "kaushan-script": "addcc80ddcc170ff8c97140ab37ac380ac4e6d0b8fd14e5d107b4cb87ffd778f",
    "mansalva": "f1af85c4066b3cecb1824b2c439fc9ee658e1e0732dd8df683d2d1c517bad47a",
    "marck-script": "b32acf77642711e18c14d57aabeefa02ee25664a7f40929ee5f72396557b6e76",
    "neucha": "5e0c6ca42b9531a42a7994e3ed907ea9e3a360dcaa6f77847ef587340d21d6ac",
    "pacifico": "99ec044ad9040a708e38f90ebd5984ca03fc46afeee26d5c77c4769c66ed89e2",
    "parisienne": "cf3c285d1ec1ee935746c475ca71e20d9f1fc3b5d62166e2523acdd0737e239c",
    "patrick-hand": "ac5bc9033b2572bf84d39f7150c1634e37ed16e8dbee632d6d0bceac0bbf0199",
    "sacramento": "2fcd867d2812578d001b0eca921848e24de91d01986f26e038be374ec7c5cfd2",
    "satisfy": "efed75fb59ebfac3006c1a815cef791a300d1a4f7e75b0bf0654fa4f6884098e",
    "schoolbell": "9b308506b890f3b49de775d414f639dfd0a9c88dcc7944451292be56b57a4e77",
    "shadows-into-light": "2498c027559c4ae9a920e18e30031193148983e7ea195416d62c5d0ea2eaa3ac",
    "short-stack": "eed62bca9927bcbd97fa2432f2344013b1bed43f0529d926f00aa63c5d050a36",
    "sriracha": "dd66cc98657b4048be3950edac49aea725b2a9db5db6cea36b639160a88d7691",
    "sue-ellen-francisco": "af35498e786cbebc60db75e5bd1448472dc44cda41698708edc7ae770fbf469c",
    "swanky-and-moo-moo": "e91335294902c18260c372cbefb30d5eb5bccb396f1a46c8796ff68594c531b4",
    "the-girl-next-door": "2f4e5d1a5879c1ae55aea79a7b9f850ab9ea1c2e3557958af290c54bc64e684f",
    "twinkle-star": "c1c6ac04f9efdacca1c3e34989dcc3c9ea893a76e3ac0baa4a40024d1c008dc0",
    "yellowtail": "78f5413a0d04f3331122d49f10507a6c290afe4d441fc49a968c7779331aedb4",
}
"""SHA-256 of ``<family>-latin-400-normal.woff2``, by family."""

"""Primitives against the RFCs' and the specification's numbers."""

import itertools
import math
import secrets

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES128, ChaCha20
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.aggregation.secure.graph import (
    GRINDING,
    Parameters,
    neighbours,
    parameters,
    permutation,
    shortfall,
)
from paceline.aggregation.secure.keys import (
    AgreementKey,
    IdentityKey,
    context,
    derive,
    derive_stream,
    open_sealed,
    pair_info,
    public_of_agreement,
    seal,
    verify,
)
from paceline.aggregation.secure.masks import PRGS, apply, apply_all, expand
from paceline.aggregation.secure.shamir import PRIME, combine, share, weights
from paceline.core.errors import ConfigError, ProtocolError
from tests.work import steps

hx = bytes.fromhex


# -- S2: Shamir ----------------------------------------------------------------------------------
def test_s2_the_sheets_numbers(monkeypatch):
    drawn = iter([5, 7])
    monkeypatch.setattr(secrets, "randbelow", lambda n: next(drawn))
    assert share(42, 3, [1, 2, 3, 4, 5], 257) == [54, 80, 120, 174, 242]
    at = weights([1, 3, 5], 257)
    assert at == [34, 63, 161]
    assert combine([54, 120, 242], at, 257) == 42


def test_s2_two_shares_fit_every_secret():
    for (x1, y1), (x2, y2) in itertools.combinations(zip(range(1, 6), [54, 80, 120, 174, 242], strict=True), 2):
        fits = 0
        at = weights([x1, x2, 6], 257)
        for secret in range(257):  # some third share always completes a polynomial of degree 2 with this secret
            third = (secret - y1 * at[0] - y2 * at[1]) * pow(at[2], -1, 257) % 257
            fits += combine([y1, y2, third], at, 257) == secret
        assert fits == 257


@settings(max_examples=40)
@given(st.integers(0, PRIME - 1), st.integers(1, 8), st.integers(0, 6), st.randoms())
def test_any_threshold_of_shares_gives_the_secret(secret, threshold, extra, random):
    xs = random.sample(range(1, 1000), threshold + extra)
    shares = dict(zip(xs, share(secret, threshold, xs), strict=True))
    chosen = random.sample(xs, threshold)
    assert combine([shares[x] for x in chosen], weights(chosen)) == secret


def test_the_field_is_prime():
    d, r = PRIME - 1, 0
    while d % 2 == 0:
        d, r = d // 2, r + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43):
        x = pow(base, d, PRIME)
        assert x in (1, PRIME - 1) or any((x := x * x % PRIME) == PRIME - 1 for _ in range(r - 1))


@pytest.mark.parametrize(("t", "xs"), [(0, [1, 2]), (3, [1, 2]), (1, [0, 1]), (1, [1, 1]), (1, [1, PRIME])])
def test_unsafe_sharing_is_refused(t, xs):
    with pytest.raises(ConfigError):
        share(1, t, xs)


# -- S10: RFC vectors ----------------------------------------------------------------------------
def test_s10_x25519_rfc7748():
    scalar = hx("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = hx("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    out = hx("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552")
    assert AgreementKey.from_bytes(scalar).agree(point) == out
    nine = bytes([9]) + bytes(31)
    once = hx("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079")
    assert AgreementKey.from_bytes(nine).agree(nine) == once == public_of_agreement(nine)
    bob = AgreementKey.from_bytes(hx("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    assert bob.public == hx("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    alice = AgreementKey.generate()
    assert alice.agree(bob.public) == bob.agree(alice.public)


def test_s10_hkdf_rfc5869():
    key = hx("0b" * 22)
    okm = derive(key, hx("000102030405060708090a0b0c"), hx("f0f1f2f3f4f5f6f7f8f9"), 42)
    assert okm == hx("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")


@pytest.mark.parametrize("length", [1, 16, 32])
def test_s10_short_keys_are_the_first_bytes_of_hkdf(length):
    """Up to one block, by HMAC alone: RFC 5869, with its pseudorandom key, and the library for other inputs."""
    salt, info = hx("000102030405060708090a0b0c"), hx("f0f1f2f3f4f5f6f7f8f9")
    okm = hx("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf")[:length]
    assert derive(hx("0b" * 22), salt, info, length) == okm
    assert derive_stream(hx("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"), info, length) == okm
    for secret, salt, info in ((b"k" * 32, b"", b""), (b"k" * 32, b"s" * 100, b"i" * 100)):
        assert derive(secret, salt, info, length) == HKDF(SHA256(), length, salt, info).derive(secret)
        assert derive_stream(secret, info, length) == HKDFExpand(SHA256(), length, info).derive(secret)


def test_more_than_one_block_is_not_expanded_from_one():
    with pytest.raises(ValueError, match="33 bytes"):
        derive_stream(bytes(32), b"", 33)


def test_s10_chacha20_rfc8439():
    key = bytes(range(32))
    text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it."
    stream = Cipher(ChaCha20(key, hx("01000000" + "000000000000004a00000000")), mode=None).encryptor()
    assert stream.update(text)[:32] == hx("6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0b")
    sealed = ChaCha20Poly1305(hx("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f")).encrypt(
        hx("070000004041424344454647"), text, hx("50515253c0c1c2c3c4c5c6c7")
    )
    assert sealed[-16:] == hx("1ae10b594f09e26a7e902ecbd0600691")


def test_s10_aes_ctr_nist_sp800_38a():
    key, counter = hx("2b7e151628aed2a6abf7158809cf4f3c"), hx("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    out = Cipher(AES128(key), CTR(counter)).encryptor().update(hx("6bc1bee22e409f96e93d7e117393172a"))
    assert out == hx("874d6191b620e3261bef6864990db6ce")


def test_s10_ed25519_rfc8032():
    key = IdentityKey.from_bytes(hx("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
    assert key.public == hx("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    signature = key.sign(hx("72"))
    assert signature.hex().startswith("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da")
    assert verify(key.public, signature, hx("72"))
    assert not verify(key.public, signature, hx("73"))
    assert not verify(b"short", signature, hx("72"))


@pytest.mark.parametrize("junk", [None, 3, "text", b"", bytes(64), bytes(65), [], [b"x"], {}, {1: b"x"}, "right bytes"], ids=repr)
def test_whatever_is_not_a_signature_verifies_nothing(junk):
    """Some of it has no hash, so that it cannot be looked up among the checked signatures."""
    key = IdentityKey.generate()
    signature = bytearray(key.sign(b"data")) if junk == "right bytes" else junk
    assert verify(key.public, signature, b"data") is False
    assert verify(signature, key.sign(b"data"), b"data") is False


def test_a_low_order_key_is_refused():
    with pytest.raises(ProtocolError, match="low order"):
        AgreementKey.generate().agree(bytes(32))


def test_sealed_messages_cannot_be_changed_or_redirected():
    key = secrets.token_bytes(32)
    sealed = seal(key, b"share", b"from 1 to 2")
    assert open_sealed(key, sealed, b"from 1 to 2") == b"share"
    assert len(sealed) == 5 + 28
    for bad, aad in [(sealed[:-1], b"from 1 to 2"), (sealed, b"from 1 to 3"), (b"", b"")]:
        with pytest.raises(ProtocolError):
            open_sealed(key, bad, aad)


def test_contexts_are_unambiguous():
    seen = {context(b"ab", 1, "r"), context(b"a", 1, "r"), context(b"ab", 2, "r"), context(b"ab", 1, "s"), context(b"", 1, "r")}
    assert len(seen) == 5
    assert pair_info("mask", 3, 7) == pair_info("mask", 7, 3) != pair_info("seal", 3, 7)


# -- S7, S11: masks ------------------------------------------------------------------------------
@pytest.mark.parametrize("prg", PRGS)
def test_s7_streams_share_no_block(prg):
    seed, other = secrets.token_bytes(32), secrets.token_bytes(32)
    blocks: list[bytes] = []
    for key, segment in ((seed, "main"), (seed, "exact"), (other, "main")):
        data = expand(key, segment, 2048, "<u4", prg).tobytes()
        blocks += [data[i : i + 16] for i in range(0, len(data), 16)]
    assert len(set(blocks)) == len(blocks)


@pytest.mark.parametrize("prg", PRGS)
def test_s11_words_are_little_endian_on_any_machine(prg):
    seed = bytes(range(32))
    raw = expand(seed, "main", 64, np.uint8, prg).tobytes()
    assert expand(seed, "main", 16, "<u4", prg).tolist() == [int.from_bytes(raw[i : i + 4], "little") for i in range(0, 64, 4)]
    assert expand(seed, "main", 8, ">u8", prg).tolist() == [int.from_bytes(raw[i : i + 8], "little") for i in range(0, 64, 8)]


@pytest.mark.parametrize("prg", PRGS)
@pytest.mark.parametrize("kind", ["<u4", "<u8"])
@pytest.mark.parametrize("length", [1, 5, 65_536, 70_001])
def test_masks_in_blocks_equal_one_stream_and_cancel(prg, kind, length):
    seeds = [(secrets.token_bytes(32), 1), (secrets.token_bytes(32), -1)]
    words = np.arange(length, dtype=kind)
    apply_all(words, seeds, "main", prg)
    with np.errstate(over="ignore"):
        first, second = (expand(seed, "main", length, kind, prg) for seed, _ in seeds)
        expected = np.arange(length, dtype=kind) + first - second
    assert np.array_equal(words, expected)
    for seed, sign in seeds:
        apply(words, seed, "main", -sign, prg)
    assert np.array_equal(words, np.arange(length, dtype=kind))


def test_unknown_generators_are_named():
    with pytest.raises(ConfigError, match="aes128ctr"):
        expand(bytes(32), "main", 1, "<u4", "twister")


# -- graph and parameters ------------------------------------------------------------------------
TABLE = {
    (0.05, 0.05, False): [(30, 16), (30, 16), (34, 18), (36, 20), (38, 21)],
    (0.1, 0.1, False): [(42, 22), (44, 23), (52, 28), (58, 31), (60, 32)],
    (0.1, 0.3, False): [(74, 38), (138, 70), (222, 112), (274, 138), (306, 154)],
    (0.2, 0.2, False): [(74, 38), (80, 42), (112, 59), (126, 66), (136, 71)],
    (0.3, 0.3, False): [None, (146, 75), (244, 126), (306, 157), (342, 176)],
    (0.05, 0.05, True): [(30, 18), (42, 29), (62, 43), (68, 47), (74, 51)],
    (0.1, 0.1, True): [(42, 27), (76, 52), (114, 78), (132, 90), (144, 98)],
    (0.1, 0.2, True): [(56, 34), (130, 81), (230, 145), (292, 184), (332, 209)],
    (0.2, 0.2, True): [(74, 48), (172, 116), (340, 229), (478, 322), (566, 381)],
}


@pytest.mark.parametrize("row", TABLE)
def test_parameters_of_the_sheet(row):
    """The table does not charge for a server that tries many graphs."""
    gamma, delta, active = row
    for n, expected in zip((100, 300, 1000, 3000, 10_000), TABLE[row], strict=True):
        got = parameters(n, gamma, delta, active, grinding=0)
        assert (got.neighbours, got.threshold) == (expected or (99, 51))


def test_a_server_that_tries_graphs_is_charged_for():
    """A graph surrounds some victim with probability 2^-(sigma + 64) at most, so the best of 2^64 does with 2^-sigma."""
    assert GRINDING >= 64
    for n, k, t in [(100, 98, 55), (300, 98, 65), (1000, 150, 108)]:
        assert parameters(n) == Parameters(k, t)
        assert parameters(n) == parameters(n, sigma=40 + 64, grinding=0)
        before = parameters(n, grinding=0)
        assert shortfall(n, before.neighbours, before.threshold, 0.1, 0.1, True, 40)
        assert shortfall(n, before.neighbours, before.threshold, 0.1, 0.1, True, 40, grinding=0) == ""
    assert parameters(1000, active=False) == parameters(1000, active=False, grinding=0)


@pytest.mark.parametrize("n", [3, 5, 10, 50, 60, 100, 300, 1000])
def test_computed_sizes_have_no_shortfall_and_smaller_ones_do(n):
    k, t = parameters(n).neighbours, parameters(n).threshold
    assert shortfall(n, k, t, 0.1, 0.1, True, 40) == ""
    corrupt = math.ceil(0.1 * n)
    least = (k + corrupt) // 2 + 1 if k >= n - 1 else t  # complete: more than the corrupt neighbours of two halves
    assert shortfall(n, k, least - 1, 0.1, 0.1, True, 40)
    if k < n - 1:
        assert "unconnected" in shortfall(n, 20, 19, 0.01, 0.3, True, 40)


def test_parameters_of_complete_graphs():
    for n, curious, active in [(10, 6, 7), (20, 11, 14), (30, 16, 21), (50, 26, 34)]:
        assert parameters(n, active=False).threshold == curious
        assert parameters(n).threshold == active
        assert parameters(n).neighbours == n - 1
    assert parameters(100, complete_up_to=100).threshold == 67
    assert parameters(100, active=False, complete_up_to=100).threshold == 51
    for n in (3, 4, 5):
        assert 1 <= parameters(n).threshold < n


def test_parameters_are_computed_with_little_work():
    parameters.cache_clear()
    steps(100_000, parameters, 10_000, 0.2, 0.2)  # 20,000 of them


@pytest.mark.parametrize(("n", "k"), [(11, 4), (60, 30), (7, 6), (7, 9)])
def test_the_ring_is_regular_symmetric_and_connected(n, k):
    order = permutation(range(n), b"seed")
    graph = neighbours(order, k)
    assert sorted(order) == list(range(n))
    assert order != permutation(range(n), b"other")
    assert {len(near) for near in graph.values()} == {min(k, n - 1)}
    assert all(c in graph[v] for c, near in graph.items() for v in near)
    seen, queue = {0}, [0]
    while queue:
        queue += [v for v in graph[queue.pop()] if v not in seen and not seen.add(v)]
    assert len(seen) == n

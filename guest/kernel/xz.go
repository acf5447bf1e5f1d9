package kernel

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

// Kernels for x86 are packed with `xz --x86 --lzma2=dict=32MiB --check=crc32`: a filter that makes
// jump targets absolute stands before LZMA2. The xz library has no such filter, so the container is
// read here and only LZMA2 is left to it.
const (
	xzHeaderBytes   = 12
	xzFilterX86     = 0x04
	xzFilterLZMA2   = 0x21
	xzFlagFilters   = 0x03 // number of filters less one
	xzFlagPacked    = 0x40 // the block header tells the packed size
	xzFlagUnpacked  = 0x80 // and the unpacked one
	xzFlagReserved  = 0x3c
	xzCheckCRC32    = 0x01
	xzCheckTypeMask = 0x0f
	// xzDictMax bounds the memory a hostile block header can ask for; kernels use 32 MiB.
	xzDictMax = 128 << 20
	// xzDictMin is the smallest dictionary the LZMA2 reader takes.
	xzDictMin = 4 << 10
)

var errXZ = errors.New("the xz container makes no sense")

// unpackXZ unpacks the first block of the xz stream in r; kernels have only one.
func unpackXZ(r io.Reader, limit int64) ([]byte, error) {
	in := bufio.NewReader(r)
	var head [xzHeaderBytes]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(head[:], magicXZ) || crc32.ChecksumIEEE(head[6:8]) != binary.LittleEndian.Uint32(head[8:]) {
		return nil, errXZ
	}
	check := head[7] & xzCheckTypeMask
	block, err := readXZBlockHeader(in)
	if err != nil {
		return nil, err
	}
	packed := &countingReader{r: in}
	z, err := lzma.Reader2Config{DictCap: block.dict}.NewReader2(packed)
	if err != nil {
		return nil, err
	}
	out, err := readLimited(z, limit)
	if err != nil {
		return nil, err
	}
	if block.x86 {
		filterX86(out)
	}
	if check != xzCheckCRC32 {
		return out, nil // the ELF headers are looked at afterwards all the same
	}
	if pad := int64(-packed.n & 3); pad > 0 {
		if _, err := in.Discard(int(pad)); err != nil {
			return nil, err
		}
	}
	var sum [4]byte
	if _, err := io.ReadFull(in, sum[:]); err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint32(sum[:]) != crc32.ChecksumIEEE(out) {
		return nil, errors.New("checksum mismatch")
	}
	return out, nil
}

// countingReader counts what the LZMA2 reader takes. It is a ByteReader, so that nothing is read
// ahead.
type countingReader struct {
	r *bufio.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *countingReader) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

type xzBlock struct {
	x86  bool
	dict int
}

func readXZBlockHeader(in *bufio.Reader) (xzBlock, error) {
	first, err := in.ReadByte()
	if err != nil {
		return xzBlock{}, err
	}
	if first == 0 { // the index: the stream has no block
		return xzBlock{}, errXZ
	}
	raw := make([]byte, (int(first)+1)*4) // at most 1,024
	raw[0] = first
	if _, err := io.ReadFull(in, raw[1:]); err != nil {
		return xzBlock{}, err
	}
	body, sum := raw[:len(raw)-4], raw[len(raw)-4:]
	if crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(sum) {
		return xzBlock{}, errors.New("the block header is damaged")
	}
	flags := body[1]
	if flags&xzFlagReserved != 0 {
		return xzBlock{}, errXZ
	}
	p := bytes.NewReader(body[2:])
	for _, f := range []byte{xzFlagPacked, xzFlagUnpacked} {
		if flags&f != 0 {
			if _, err := binary.ReadUvarint(p); err != nil {
				return xzBlock{}, errXZ
			}
		}
	}
	return readXZFilters(p, int(flags&xzFlagFilters)+1)
}

func readXZFilters(p *bytes.Reader, count int) (xzBlock, error) {
	var block xzBlock
	for i := range count {
		id, err1 := binary.ReadUvarint(p)
		size, err2 := binary.ReadUvarint(p)
		if err1 != nil || err2 != nil || size > uint64(p.Len()) {
			return xzBlock{}, errXZ
		}
		props := make([]byte, size)
		if _, err := io.ReadFull(p, props); err != nil {
			return xzBlock{}, errXZ
		}
		last := i == count-1
		switch {
		case id == xzFilterX86 && !last && !block.x86 && size == 0:
			block.x86 = true
		case id == xzFilterLZMA2 && last && size == 1 && props[0] <= 40:
			dict := uint64(2|props[0]&1) << (props[0]/2 + 11)
			if dict > xzDictMax {
				return xzBlock{}, errors.New("the dictionary is too large")
			}
			block.dict = max(int(dict), xzDictMin)
		default:
			return xzBlock{}, errors.New("an xz filter that kernels do not use")
		}
	}
	return block, nil
}

// filterX86 turns the absolute targets of CALL and JMP instructions back into relative ones, in
// place. It is the inverse of xz's x86 filter: a byte 0xe8 or 0xe9 counts as an instruction when the
// top byte of the 32 bits behind it is 0x00 or 0xff and no such byte in the three bytes before makes
// that unlikely.
func filterX86(b []byte) {
	const instruction = 5
	if len(b) < instruction {
		return
	}
	extreme := func(c byte) bool { return c == 0x00 || c == 0xff }
	// allowed says for the last three bytes, as a bit each where an opcode stood, whether an
	// instruction may begin here; suspect which byte of the target must then not be extreme.
	allowed := [8]bool{true, true, true, false, true, false, false, false}
	suspect := [8]uint{0, 1, 2, 2, 3, 3, 3, 3}
	var mask uint32
	prev := -1 // position of the last opcode seen
	for i := 0; i+instruction <= len(b); i++ {
		if b[i]&0xfe != 0xe8 {
			continue
		}
		if gap := i - prev; prev < 0 || gap > 3 {
			mask = 0
		} else {
			mask = mask << (gap - 1) & 7
			if mask != 0 && (!allowed[mask] || extreme(b[i+4-int(suspect[mask])])) {
				prev, mask = i, mask<<1&7|1
				continue
			}
		}
		prev = i
		if !extreme(b[i+4]) {
			mask = mask<<1&7 | 1
			continue
		}
		target := binary.LittleEndian.Uint32(b[i+1:])
		var relative uint32
		for {
			relative = target - uint32(i+instruction)
			if mask == 0 {
				break
			}
			at := suspect[mask] * 8
			if !extreme(byte(relative >> (24 - at))) {
				break
			}
			target = relative ^ (1<<(32-at) - 1)
		}
		relative &= 0x01ffffff
		if relative&0x01000000 != 0 {
			relative |= 0xff000000
		}
		binary.LittleEndian.PutUint32(b[i+1:], relative)
		i += instruction - 1
		prev, mask = i, 0
	}
}

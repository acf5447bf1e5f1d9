package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/bits"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// content says where the bytes of a regular file are.
type content struct {
	// block is the first of the blocks that hold all but the tail.
	block  uint32
	blocks uint32
	// tail is the offset among the tails of what is kept beside the inode.
	tail      int64
	tailBytes uint16
	// chunks of a file with holes: the first block of each, noBlock for a hole. Each
	// is 1<<chunkBits long.
	chunks    []uint32
	chunkBits uint8
}

// noBlock marks a hole.
const noBlock = ^uint32(0)

// chunkBitsMin: holes of 64 KiB and more are kept as holes. Smaller ones would save
// little and make a file of many pieces.
const chunkBitsMin = 16

// chunksMax keeps the table of a file within 256 KiB.
const chunksMax = 64 << 10

// run is a row of blocks.
type run struct{ block, blocks uint32 }

// contents is the part of a disk that holds the bytes of files, written as the
// layers come. Blocks of files that a later layer replaced are used again; what is
// never used is a hole of the disk's file in the end. What goes where depends on
// nothing but the layers.
type contents struct {
	f      *os.File
	tails  *os.File
	charge func(bytes int64) error

	// next block that was never used; block 0 is the superblock's.
	next uint32
	// free rows of blocks by the power of two that their lengths reach, the last
	// freed at the end.
	free [33][]run

	// pending is written at offset at.
	pending []byte
	at      int64

	tailEnd   int64
	tailQueue []byte
	buffer    []byte
	zero      []byte
}

const pendingBytes = 1 << 20

func newContents(f, tails *os.File, charge func(int64) error) *contents {
	return &contents{f: f, tails: tails, charge: charge, next: 1, buffer: make([]byte, 1<<chunkBitsMin), zero: make([]byte, 1<<chunkBitsMin), pending: make([]byte, 0, pendingBytes)}
}

// rowsTried of the right order of size are looked at: a file that is replaced by one
// of about its size finds a row among them.
const rowsTried = 64

// reuse gives a row of blocks that a file had, if one is found that is long enough.
func (c *contents) reuse(blocks uint32) (uint32, bool) {
	for k := bits.Len32(blocks) - 1; k < len(c.free); k++ { // 2^k <= length of its rows
		rows := c.free[k]
		for n := len(rows) - 1; n >= max(0, len(rows)-rowsTried); n-- {
			r := rows[n]
			if r.blocks < blocks {
				continue
			}
			c.free[k] = slices.Delete(rows, n, n+1)
			c.release(run{r.block + blocks, r.blocks - blocks})
			return r.block, true
		}
	}
	return 0, false
}

// extend gives a row of blocks at the end of the disk. They hold zeros.
func (c *contents) extend(blocks uint32) (uint32, error) {
	if noBlock-c.next <= blocks {
		return 0, tooLarge("its files take more than 16 TiB")
	}
	if err := c.charge(int64(blocks) * blockBytes); err != nil {
		return 0, err
	}
	block := c.next
	c.next += blocks
	return block, nil
}

func (c *contents) release(r run) {
	if r.blocks > 0 {
		k := bits.Len32(r.blocks) - 1
		c.free[k] = append(c.free[k], r)
	}
}

// drop frees what a file had.
func (c *contents) drop(i *inode) {
	d := &i.content
	if d.chunks == nil {
		c.release(run{d.block, d.blocks})
	}
	for k, block := range d.chunks {
		if block != noBlock {
			c.release(run{block, chunkBlocks(i.size, d.chunkBits, k)})
		}
	}
	*d = content{}
}

// chunkBlocks is how many blocks chunk k of a file has: the last one is shorter.
func chunkBlocks(size uint64, chunkBits uint8, k int) uint32 {
	rest := size - uint64(k)<<chunkBits
	return uint32(blocksOf(min(rest, 1<<chunkBits)))
}

func blocksOf(bytes uint64) uint64 { return (bytes + blockBytes - 1) / blockBytes }

// store takes size bytes of r as the content of i, of which inlineMax can stay
// beside the inode.
func (c *contents) store(ctx context.Context, i *inode, r io.Reader, inlineMax int) error {
	if i.size >= 1<<chunkBitsMin {
		return c.storeLarge(ctx, i, r)
	}
	b := c.buffer[:i.size]
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	rest := len(b) % blockBytes
	if rest > inlineMax {
		rest = 0
	}
	whole := b[:len(b)-rest]
	if blocks := uint32(blocksOf(uint64(len(whole)))); blocks > 0 {
		block, ok := c.reuse(blocks)
		if !ok {
			var err error
			if block, err = c.extend(blocks); err != nil {
				return err
			}
		}
		i.content.block, i.content.blocks = block, blocks
		if err := c.write(int64(block)*blockBytes, whole); err != nil {
			return err
		}
	}
	return c.storeTail(i, b[len(whole):])
}

func (c *contents) storeTail(i *inode, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if err := c.charge(int64(len(b))); err != nil {
		return err
	}
	i.content.tail, i.content.tailBytes = c.tailEnd, uint16(len(b))
	c.tailEnd += int64(len(b))
	c.tailQueue = append(c.tailQueue, b...)
	if len(c.tailQueue) < pendingBytes {
		return nil
	}
	return c.flushTails()
}

func (c *contents) flushTails() error {
	_, err := c.tails.WriteAt(c.tailQueue, c.tailEnd-int64(len(c.tailQueue)))
	c.tailQueue = c.tailQueue[:0]
	return err
}

// storeLarge reads in pieces. Pieces of zeros are left out where the blocks are
// new, and only then the file is one of chunks: otherwise it lies in one row.
func (c *contents) storeLarge(ctx context.Context, i *inode, r io.Reader) error {
	if blocksOf(i.size) >= uint64(noBlock) {
		return tooLarge("a file has %d bytes", i.size)
	}
	d := &i.content
	blocks := uint32(blocksOf(i.size))
	if block, ok := c.reuse(blocks); ok {
		d.block, d.blocks = block, blocks
		return c.copyAt(ctx, int64(block)*blockBytes, r, i.size)
	}
	chunkBits := uint8(chunkBitsMin)
	for i.size>>chunkBits >= chunksMax {
		chunkBits++
	}
	chunk := uint64(1) << chunkBits
	oneRow := true
	var chunks []uint32
	for done := uint64(0); done < i.size; done += chunk {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		block, err := c.storeChunk(r, min(chunk, i.size-done))
		if err != nil {
			return err
		}
		// Nobody else extends the disk meanwhile, so chunks without holes are a row.
		oneRow = oneRow && block != noBlock
		chunks = append(chunks, block)
	}
	if oneRow {
		d.block, d.blocks = chunks[0], blocks
	} else {
		d.chunks, d.chunkBits = chunks, chunkBits
	}
	return nil
}

// storeChunk writes the next chunk of a file at the end of the disk unless it is
// all zeros.
func (c *contents) storeChunk(r io.Reader, size uint64) (uint32, error) {
	block := noBlock
	for done := uint64(0); done < size; {
		b := c.buffer[:min(uint64(len(c.buffer)), size-done)]
		if _, err := io.ReadFull(r, b); err != nil {
			return 0, err
		}
		if block == noBlock && !bytes.Equal(b, c.zero[:len(b)]) {
			var err error
			if block, err = c.extend(uint32(blocksOf(size))); err != nil {
				return 0, err
			}
		}
		if block != noBlock {
			if err := c.write(int64(block)*blockBytes+int64(done), b); err != nil {
				return 0, err
			}
		}
		done += uint64(len(b))
	}
	return block, nil
}

// copyAt writes size bytes of r.
func (c *contents) copyAt(ctx context.Context, at int64, r io.Reader, size uint64) error {
	for done := uint64(0); done < size; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		b := c.buffer[:min(uint64(len(c.buffer)), size-done)]
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		if err := c.write(at+int64(done), b); err != nil {
			return err
		}
		done += uint64(len(b))
	}
	return nil
}

// write puts bytes at an offset of the disk, and zeros up to the end of the block.
func (c *contents) write(at int64, b []byte) error {
	if at != c.at+int64(len(c.pending)) || len(c.pending)+len(b)+blockBytes > cap(c.pending) {
		if err := c.flush(); err != nil {
			return err
		}
		c.at = at
	}
	c.pending = append(c.pending, b...)
	if rest := len(b) % blockBytes; rest > 0 {
		c.pending = append(c.pending, c.zero[:blockBytes-rest]...)
	}
	return nil
}

// flush writes what is pending.
func (c *contents) flush() error {
	if len(c.pending) == 0 {
		return nil
	}
	_, err := c.f.WriteAt(c.pending, c.at)
	c.at += int64(len(c.pending))
	c.pending = c.pending[:0]
	return err
}

// punch makes holes of the blocks that nothing uses. A file system without holes
// keeps the bytes of before, so zeros are written there.
func (c *contents) punch() error {
	for _, rows := range c.free {
		for _, r := range rows {
			at, size := int64(r.block)*blockBytes, int64(r.blocks)*blockBytes
			err := unix.Fallocate(int(c.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, size)
			if errors.Is(err, unix.EOPNOTSUPP) {
				for err = nil; size > 0 && err == nil; {
					n := min(size, int64(len(c.zero)))
					_, err = c.f.WriteAt(c.zero[:n], at)
					at, size = at+n, size-n
				}
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

package replica

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// The body of a snapshot is the state's stream in one zstd frame: on the disk, and
// on its way to peers. A stream that is not compressed, which earlier versions
// wrote, is read too.

const (
	// compressWindowBytes: objects that are alike are near each other.
	compressWindowBytes = 256 << 10
	// compressWindowMax is taken of others.
	compressWindowMax = 8 << 20
)

// zstdMagic begins a frame (RFC 8878, 3.1.1). A stream begins with the length of
// its header, which is not the first of these bytes.
var zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}

// encoders are reused. They use the goroutine of their caller alone, so that the
// same state gives the same bytes. The checksums are the log's and the state's.
var encoders = sync.Pool{New: func() any {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), zstd.WithWindowSize(compressWindowBytes), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic(err) // the options are constants
	}
	return e
}}

// decoders are reused, too.
var decoders = sync.Pool{New: func() any {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(compressWindowMax))
	if err != nil {
		panic(err) // the options are constants
	}
	return d
}}

// writeState writes the body of a view's snapshot and gives the length of the
// state's stream in it.
func writeState(w io.Writer, view *state.View) (int64, error) {
	e := encoders.Get().(*zstd.Encoder)
	e.Reset(w)
	c := &counter{w: e}
	err := errors.Join(view.WriteSnapshot(c), e.Close())
	e.Reset(nil)
	encoders.Put(e)
	return c.n, err
}

// readState restores a state from a snapshot's body.
func readState(in io.Reader, into *state.State) error {
	b := bufio.NewReader(in)
	if head, err := b.Peek(len(zstdMagic)); err != nil || !bytes.Equal(head, zstdMagic) {
		return into.Restore(b)
	}
	d := decoders.Get().(*zstd.Decoder)
	err := d.Reset(b)
	if err != nil {
		err = problem.New(problem.Internal, "snapshot.damaged", "the snapshot can't be uncompressed").WithCause(err)
	} else if err = into.Restore(d); err != nil {
		err = fmt.Errorf("compressed snapshot: %w", err)
	}
	_ = d.Reset(nil) // forgets b
	decoders.Put(d)
	return err
}

// counter counts what is written, and lets others run between writes: encoding
// millions of objects would otherwise keep a processor for 10 ms at a time from the
// loop, which takes microseconds.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	runtime.Gosched()
	return n, err
}

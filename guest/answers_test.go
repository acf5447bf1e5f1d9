package guest

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/blixard/blixard/guest/wire"
)

// FuzzAnswers reads what a hostile guest sends in place of a server's data: never more than came, and an end
// only where the guest says so.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte{byte(wire.FrameStdout), 0, 0, 2, 'h', 'i', byte(wire.FrameStdoutEnd), 0, 0, 0}, 1)
	f.Add([]byte{byte(wire.FrameStdout), 0, 0, 0, byte(wire.FrameDone), 0, 0, 0}, 3)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		a := answers{r: bytes.NewReader(b)}
		buf := make([]byte, 1+(size&0xffff)%64)
		total := 0
		for {
			n, err := a.Read(buf)
			if total += n; total > len(b) {
				t.Fatalf("%d bytes of %d", total, len(b))
			}
			if err == nil {
				continue
			}
			if errors.Is(err, io.EOF) && !bytes.Contains(b, []byte{byte(wire.FrameStdoutEnd), 0, 0, 0}) {
				t.Fatalf("an end that nobody told: %v", err)
			}
			if _, again := a.Read(buf); again == nil {
				t.Fatal("more after the end")
			}
			return
		}
	})
}

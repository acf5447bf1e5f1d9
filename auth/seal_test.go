package auth

import (
	"bytes"
	"testing"

	"github.com/blixard/blixard/internal/problem"
)

func TestSealedValues(t *testing.T) {
	secret := NewSecret()
	sealed, err := SealValue(secret, "c1", "db", []byte("hunter2"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, []byte("hunter2")) {
		t.Fatal("the value is in the clear")
	}
	value, err := OpenValue(secret, "c1", "db", sealed)
	if err != nil || string(value) != "hunter2" {
		t.Fatalf("%q, %v", value, err)
	}
	flipped := bytes.Clone(sealed)
	flipped[len(flipped)/2] ^= 1
	for what, open := range map[string]func() ([]byte, error){
		"another secret":  func() ([]byte, error) { return OpenValue(NewSecret(), "c1", "db", sealed) },
		"another cluster": func() ([]byte, error) { return OpenValue(secret, "c2", "db", sealed) },
		"another name":    func() ([]byte, error) { return OpenValue(secret, "c1", "dbx", sealed) },
		"a flipped bit":   func() ([]byte, error) { return OpenValue(secret, "c1", "db", flipped) },
		"nothing":         func() ([]byte, error) { return OpenValue(secret, "c1", "db", nil) },
	} {
		if v, err := open(); !problem.HasCode(err, "auth.sealed") || v != nil {
			t.Errorf("%s: %q, %v", what, v, err)
		}
	}
	if _, err := SealValue([]byte("short"), "c1", "db", nil); !problem.HasCode(err, "auth.secret") {
		t.Errorf("a short secret: %v", err)
	}
}

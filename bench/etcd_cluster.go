package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// The files of the etcd cluster's keys, in its directory.
const (
	authorityFile   = "ca.pem"
	certificateFile = "cert.pem"
	keyFile         = "key.pem"
	// certificateLife is longer than any run.
	certificateLife = 24 * time.Hour
)

// etcdCluster is three processes of etcd's server with its defaults, and mTLS
// towards clients and peers.
type etcdCluster struct {
	dir     string
	members []*child
	// addresses for clients, the leader's first.
	addresses []string
}

func startEtcdCluster(ctx context.Context, out io.Writer, dir string) (*etcdCluster, error) {
	c := &etcdCluster{dir: dir}
	if err := writeKeys(dir); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	addresses, err := freeAddresses(2 * members)
	if err != nil {
		return nil, err
	}
	c.addresses = addresses[:members]
	peers := strings.Join(addresses[members:], ",")
	started := make(chan error, members)
	c.members = make([]*child, members)
	for i := range members {
		go func() { // none is ready before a majority is
			var err error
			c.members[i], err = startChild(ctx, out, self, "serve-etcd-member", dir, fmt.Sprint(i), c.addresses[i], peers)
			started <- err
		}()
	}
	for range members {
		err = errors.Join(err, <-started)
	}
	if err == nil {
		err = c.leaderFirst(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, c.stop())
	}
	return c, nil
}

func (c *etcdCluster) stop() (err error) {
	if c == nil {
		return nil
	}
	for _, m := range c.members {
		if m != nil {
			err = errors.Join(err, m.stop())
		}
	}
	return err
}

// serveEtcdMember is the child process.
func serveEtcdMember(ctx context.Context, args []string) error {
	dir, name, address, peers := args[0], args[1], args[2], strings.Split(args[3], ",")
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = "m"+name, filepath.Join(dir, "data"+name)
	cfg.LogLevel = "fatal" // it logs its own shutdown as errors
	keys := transport.TLSInfo{
		CertFile: filepath.Join(dir, certificateFile), KeyFile: filepath.Join(dir, keyFile),
		TrustedCAFile: filepath.Join(dir, authorityFile), ClientCertAuth: true,
	}
	cfg.ClientTLSInfo, cfg.PeerTLSInfo = keys, keys
	own := []url.URL{{Scheme: "https", Host: address}}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = own, own
	var initial []string
	for i, p := range peers {
		at := url.URL{Scheme: "https", Host: p}
		initial = append(initial, fmt.Sprintf("m%d=%s", i, at.String()))
		if fmt.Sprint(i) == name {
			cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{at}, []url.URL{at}
		}
	}
	cfg.InitialCluster = strings.Join(initial, ",")
	return serve(ctx, cfg)
}

// freeAddresses gives addresses that are free now.
func freeAddresses(n int) ([]string, error) {
	var addresses []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer func() { _ = l.Close() }()
		addresses = append(addresses, l.Addr().String())
	}
	return addresses, nil
}

func (c *etcdCluster) config(i int) (clientv3.Config, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(c.dir, certificateFile), filepath.Join(c.dir, keyFile))
	if err != nil {
		return clientv3.Config{}, err
	}
	authority, err := os.ReadFile(filepath.Join(c.dir, authorityFile))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	return clientv3.Config{
		Endpoints: []string{"https://" + c.addresses[i]}, Logger: zap.NewNop(),
		TLS: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, RootCAs: roots},
	}, err
}

func (c *etcdCluster) dial(ends []int) (*etcdTarget, error) {
	var configs []clientv3.Config
	for _, i := range ends {
		cfg, err := c.config(i)
		if err != nil {
			return nil, err
		}
		configs = append(configs, cfg)
	}
	return dialEtcd(configs)
}

// leaderFirst puts the leader's address in front.
func (c *etcdCluster) leaderFirst(ctx context.Context) error {
	for i, address := range c.addresses {
		t, err := c.dial([]int{i})
		if err != nil {
			return err
		}
		st, err := t.conns[0].Status(ctx, "https://"+address)
		if err = errors.Join(err, t.close()); err != nil {
			return err
		}
		if st.Leader == st.Header.MemberId {
			c.addresses = slices.Insert(slices.Delete(c.addresses, i, i+1), 0, address)
			return nil
		}
	}
	return errors.New("no etcd leads")
}

// prepare puts every key, with a value as large as those to come.
func (c *etcdCluster) prepare(ctx context.Context) error {
	t, err := c.dial([]int{0})
	if err != nil {
		return err
	}
	return errors.Join(fill(ctx, t), t.close())
}

// readClient reads keys after everything that was acknowledged, which is what
// Get does unless it is told otherwise.
func (t *etcdTarget) readClient(i int) change {
	c := t.conns[i%len(t.conns)]
	return func(ctx context.Context, key int, _ string) error {
		got, err := c.Get(ctx, keyName(key))
		if err == nil && (len(got.Kvs) != 1 || len(got.Kvs[0].Value) != valueBytes) {
			err = fmt.Errorf("key %s has no whole value", keyName(key))
		}
		return err
	}
}

// writeKeys makes an authority and one certificate for all members and clients.
func writeKeys(dir string) error {
	authority, key, err := certify(&x509.Certificate{
		Subject: pkix.Name{CommonName: "bench"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, nil)
	if err != nil {
		return err
	}
	leaf, leafKey, err := certify(&x509.Certificate{
		Subject: pkix.Name{CommonName: "member"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, authority, key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(leafKey)
	if err != nil {
		return err
	}
	write := func(name, kind string, der []byte) error {
		return os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
	}
	return errors.Join(write(authorityFile, "CERTIFICATE", authority.Raw), write(certificateFile, "CERTIFICATE", leaf.Raw),
		write(keyFile, "EC PRIVATE KEY", der))
}

// certify makes a key and its certificate, signed by itself without a parent.
func certify(c, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if parent == nil {
		parent, parentKey = c, key
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(certificateLife)
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, parentKey)
	if err != nil {
		return nil, nil, err
	}
	made, err := x509.ParseCertificate(der)
	return made, key, err
}

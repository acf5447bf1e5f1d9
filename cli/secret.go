package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
)

// secretBytesMax as in the API.
const secretBytesMax = 64 << 10

func (a *app) secretCommand() *cobra.Command {
	return noun("secret", "Keep what VMs need and nobody may read", []string{"secrets"}, a.secretSetCommand(), a.secretListCommand(), a.secretDeleteCommand())
}

func (a *app) secretSetCommand() *cobra.Command {
	var file string
	req := &blixardv1.SetSecretRequest{}
	cmd := &cobra.Command{
		Use: "set NAME", Short: "Set a secret from standard input or a file", Args: exactly("NAME"),
		Long: `Set a secret. The cluster keeps it encrypted, gives it only to VMs that name it, in a file in the guest's memory, and never
shows it again. A VM that runs keeps what it has until its next start.`,
		Example: `  printf 'hunter2' | blixard secret set db-password
  blixard secret set tls-key --file key.pem
  blixard run --secret db-password postgres:17`,
		RunE: func(cmd *cobra.Command, args []string) error {
			value, err := a.secretValue(file)
			if err != nil {
				return err
			}
			req.Name, req.Value, req.IdempotencyKey = args[0], value, client.NewKey()
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Secrets().SetSecret(ctx, req)
				if err != nil {
					return err
				}
				return a.say(resp.GetSecret(), "%s set", resp.GetSecret().GetName())
			})
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "file with the value, taken as it is")
	cmd.Flags().BoolVar(&req.CreateOnly, "create-only", false, "refuse to replace one that is there")
	return cmd
}

// secretValue reads the value: a file or a pipe as it is, and a line from a
// terminal, which does not show it.
func (a *app) secretValue(file string) ([]byte, error) {
	if file != "" {
		return readSmall("--file", file, secretBytesMax)
	}
	if fd, ok := terminalOf(a.stdin); ok {
		_, _ = io.WriteString(a.stderr, "value: ")
		value, err := term.ReadPassword(fd)
		_, _ = io.WriteString(a.stderr, "\n")
		return value, err
	}
	value, err := io.ReadAll(io.LimitReader(a.stdin, secretBytesMax+1))
	if err != nil {
		return nil, err
	}
	if len(value) > secretBytesMax {
		return nil, usageError("the value has more than %d KiB", secretBytesMax>>10).WithHint("a secret is small: put large files on a volume")
	}
	if len(value) == 0 {
		return nil, usageError("the value is empty").WithHint("write `printf VALUE | blixard secret set NAME`")
	}
	return value, nil
}

func (a *app) secretListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the names of the secrets", Args: exactly(), Example: "  blixard secret list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Secrets().ListSecrets(ctx, &blixardv1.ListSecretsRequest{})
				if err != nil {
					return err
				}
				return a.print(resp, func() error {
					t := &table{header: []string{"NAME", "BYTES", "CHANGED"}}
					for _, s := range resp.GetSecrets() {
						t.add(s.GetName(), fmt.Sprint(s.GetSizeBytes()), since(s.GetChangedAt()))
					}
					return a.writeTable(t)
				})
			})
		},
	}
}

func (a *app) secretDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Delete a secret that no VM has", Args: exactly("NAME"), Example: "  blixard secret delete db-password",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				_, err := c.Secrets().DeleteSecret(ctx, &blixardv1.DeleteSecretRequest{Name: args[0], IdempotencyKey: client.NewKey()})
				if err != nil {
					return err
				}
				return a.say(&blixardv1.Secret{Name: args[0]}, "%s deleted", args[0])
			})
		},
	}
}
